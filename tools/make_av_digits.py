"""Make AV-Digits: scikit-learn's handwritten digits paired with spoken digits from espeak-ng.

Needs espeak-ng and scikit-learn. The same versions of espeak-ng and numpy give the same file.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Array = npt.NDArray[np.float64]

SEED = 0
TRAIN_SIZE = 1297
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# "en" is British English; espeak-ng 1.51 ignores the variant after its alias "en-gb".
ACCENTS = [
    "en",
    "en-us",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
]

RATE = 22050  # samples per second; a recording is one second
FRAME, HOP, MELS = 1024, 512, 32
OFFSET_DB, STEP_DB = -40.0, 0.5  # level = OFFSET_DB + STEP_DB * uint8


def espeak(*arguments: str) -> bytes:
    try:
        process = subprocess.run(["espeak-ng", *arguments], capture_output=True)
    except FileNotFoundError:
        sys.exit("espeak-ng not found; install it, e.g. `apt-get install espeak-ng`")
    if process.returncode or not process.stdout:
        error = process.stderr.decode().strip() or "no output"
        raise RuntimeError(f"espeak-ng {' '.join(arguments)}: {error}")
    return process.stdout


def speak(word: str, voice: str, pitch: int = 50, speed: int = 175) -> Array:
    """Samples in [-1, 1], cut to where they exceed 1 % of the peak."""
    recording = espeak("-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", word)
    # The header of a stream gives no true length: readframes() stops where the samples end.
    with wave.open(io.BytesIO(recording)) as file:
        if file.getframerate() != RATE:
            raise RuntimeError(f"{voice}: {file.getframerate()} samples per second, not {RATE}")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=0))
    if not len(loud):
        raise RuntimeError(f"{voice}: silence for {word!r}")
    return samples[loud[0] : loud[-1] + 1]


def usable_variants() -> list[str]:
    """Variants that speak and change the voice: espeak-ng ignores one that it cannot load."""
    version = espeak("--version").decode().strip()
    data = re.search(r"Data at: (.+)", version)
    if data is None:
        sys.exit(f"espeak-ng does not say where its data are: {version}")
    plain = speak("seven", "en")

    def usable(variant: str) -> bool:
        try:
            return not np.array_equal(speak("seven", f"en+{variant}"), plain)
        except RuntimeError:
            return False

    names = sorted(path.name for path in Path(data[1], "voices", "!v").iterdir())
    variants = [name for name in names if usable(name)]
    print(f"{version}: {len(variants)} of {len(names)} voice variants")
    return variants


def record(place: int, digit: int, variants: list[str]) -> Array:
    """One second with the digit in a random voice, and white noise at 0 to 20 dB below it."""
    rng = np.random.default_rng((SEED, place))
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
    word = speak(WORDS[digit], voice, int(rng.integers(20, 80)), int(rng.integers(130, 220)))
    if len(word) > RATE:
        raise RuntimeError(f"{voice}: {WORDS[digit]!r} takes more than 1 s")
    signal = np.zeros(RATE)
    start = rng.integers(RATE - len(word) + 1)
    signal[start : start + len(word)] = word
    snr = rng.uniform(0, 20)
    # The power of the word is its mean over the whole second, silence included.
    noise: Array = rng.standard_normal(RATE) * np.sqrt(np.mean(signal**2)) / 10 ** (snr / 20)
    return signal + noise


def mel_filters() -> Array:
    """Triangles of height 1, equally spaced in mel from 0 Hz to RATE / 2: [MELS, FRAME / 2 + 1]."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2)
    edges = 700 * (10 ** (mel[:, None] / 2595) - 1)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.fft.rfftfreq(FRAME, 1 / RATE)
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    filters: Array = np.minimum(rising, falling).clip(0)
    return filters


def log_mel(samples: Array, filters: Array) -> Array:
    """Power in dB per mel band and frame: [MELS, T]."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)) ** 2
    level: Array = 10 * np.log10(filters @ power.T)
    return level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("modgrad/datasets/av_digits.npz"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="espeak-ng at a time")
    options = parser.parse_args()

    digits = load_digits()
    variants, filters = usable_variants(), mel_filters()

    def features(place: int) -> Array:
        return log_mel(record(place, digits.target[place], variants), filters)

    with ThreadPoolExecutor(options.jobs) as pool:
        levels = np.stack(list(pool.map(features, range(len(digits.target)))))
    order = np.random.default_rng(SEED).permutation(len(levels))
    np.savez_compressed(
        options.output,
        audio=np.clip(np.round((levels - OFFSET_DB) / STEP_DB), 0, 255).astype(np.uint8),
        audio_offset=np.float32(OFFSET_DB),
        audio_scale=np.float32(STEP_DB),
        image=digits.images.astype(np.uint8),
        target=digits.target.astype(np.uint8),
        train=order[:TRAIN_SIZE].astype(np.int64),
        test=order[TRAIN_SIZE:].astype(np.int64),
    )
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
