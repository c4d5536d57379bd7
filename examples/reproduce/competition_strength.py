"""What joint training loses of what each modality alone would teach.

The competition strength of audio and image on AV-Digits, in networks trained plainly and balanced.
Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation, ICCV 2023.
"""

import sys

import numpy as np
import torch
from report import Report

from modgrad import diagnostics
from modgrad.demo.data import Split, load
from modgrad.demo.methods import ALONE, METHODS
from modgrad.demo.network import MODALITIES
from modgrad.figures import FILLS, LEGEND

JOINT = {"plain": "plain", "unimodal": "with unimodal losses", "agm": "AGM"}
LR, BATCH, IMAGE_NOISE = 0.02, 64, 0.3
FIT = 3  # every third training sample is kept for the ridge


def data():
    """What networks train on, what the ridge is fitted to, what it is judged on."""
    train, test = load(IMAGE_NOISE, torch.device("cpu"))
    kept = torch.zeros(len(train), dtype=torch.bool)
    kept[::FIT] = True
    return Split(*train[~kept]), Split(*train[kept]), test


def trained(name, seed, train, epochs):
    method = METHODS[name]
    network, optimizer = method.build(LR, torch.device("cpu"), None, seed)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        method.begin_epoch(network, optimizer, train, epoch, epochs, BATCH)
        network.train()
        for inputs, targets in train.batches(BATCH, generator):
            method.step(network, optimizer, inputs, targets)
    return network


def features(network, split):
    gathered, _ = diagnostics.gather_features(
        lambda batch: network.features(batch[0]), [split[:]], model=network, progress=False
    )
    return gathered


def run(seed, methods, epochs, splits, track):
    """Competition and accuracies, by method."""
    train, *measured = splits
    names = [*ALONE.values(), *methods]
    networks = {name: trained(name, seed, train, epochs) for name in track(names, f"seed {seed}")}
    concepts = [
        {m: features(networks[name], split)[m] for m, name in ALONE.items()} for split in measured
    ]
    found = {}
    for name in methods:
        joint = [np.hstack(list(features(networks[name], split).values())) for split in measured]
        fit, test = zip(joint, concepts, strict=True)
        found[name] = diagnostics.competition_strength(fit, test)
    return found, {name: accuracies(networks[name], splits[-1]) for name in methods}


@torch.no_grad()
def accuracies(network, test):
    network.eval()
    outputs = network.outputs(test.inputs)
    return {n: (x.argmax(1) == test.targets).double().mean().item() for n, x in outputs.items()}


def main(argv=None):
    report = Report("competition_strength", __doc__, argv)
    seeds, epochs = (1, 10) if report.quick else (3, 15)
    methods = list(JOINT)[:2] if report.quick else list(JOINT)
    splits = data()
    runs = [run(seed, methods, epochs, splits, report.track) for seed in range(seeds)]
    # by method, modality and seed
    d = np.array([[[f[n].strength[m] for f, _ in runs] for m in MODALITIES] for n in methods])
    null, ceiling = (
        np.array([[getattr(f[n], key)[m] for m in MODALITIES] for f, _ in runs for n in methods])
        for key in ("null", "ceiling")
    )
    report.row("null: least of all", "> 1", f"{null.min():.3f}", bool(null.min() > 1))
    report.row(
        "ceiling: largest of all", "< 0.1", f"{ceiling.max():.3f}", bool(ceiling.max() < 0.1)
    )
    audio, image = (d[:, i] for i in range(2))
    good = bool((audio[0] > image[0]).all())
    report.row("plain: d of the image", "", f"{image[0].mean():.3f}")
    report.row("plain: d of audio, in every seed", "> image", f"{audio[0].mean():.3f}", good)
    good = bool((audio[1] < audio[0]).all())
    what = f"{JOINT['unimodal']}: d of audio, in every seed"
    report.row(what, "< plain", f"{audio[1].mean():.3f}", good)
    report.row(f"{JOINT['unimodal']}: d of the image", "", f"{image[1].mean():.3f}")
    if not report.quick:
        good = bool(audio[2].mean() < audio[0].mean())
        report.row("AGM: d of audio, mean", "< plain", f"{audio[2].mean():.3f}", good)
        report.row("AGM: d of the image", "", f"{image[2].mean():.3f}")
    for head in ("audio", "joint"):
        values = [100 * np.mean([a[n][head] for _, a in runs]) for n in methods]
        text = " / ".join(f"{x:.1f}" for x in values)
        report.row(f"accuracy, {head}: {' / '.join(methods)}", "", text)

    figure, (axes,) = report.axes(1)
    figure.set_size_inches(7, 4.2)
    for i, modality in enumerate(MODALITIES):
        colour, hatch = FILLS[i]
        style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
        for place, values in enumerate(d[:, i]):
            x = place + 0.36 * i - 0.18
            axes.bar(x, values.mean(), 0.36, label=None if place else modality, **style)
            axes.plot([x] * seeds, values, "k_", markersize=12)
    for value, text in ((null.mean(), "null"), (ceiling.mean(), "ceiling")):
        axes.axhline(value, color="black", linestyle="--", linewidth=1)
        axes.text(len(methods) - 0.6, value + 0.015, text, ha="left", fontsize=9)
    axes.set_xticks(range(len(methods)), [JOINT[name] for name in methods])
    axes.set(ylabel="competition strength d", xlim=(-0.5, len(methods) - 0.3), ylim=(0, 1.3))
    axes.set_title(f"Bars: mean of {seeds} seeds; marks: single seeds", fontsize=11)
    axes.legend(loc="upper center", ncols=2, **LEGEND)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
