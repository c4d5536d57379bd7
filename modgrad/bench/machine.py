"""Where a measurement was made, and how fast memory is there."""

import os
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

import modgrad
from modgrad.bench.timing import Flush, interleaved
from modgrad.doctor import device_name, driver, versions

_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # "32768K"
_USUAL_CACHE = 32 * 2**20


def about(device: str, command: str) -> dict[str, Any]:
    """What goes into every line of the results."""
    gpu = {"driver": driver(), "triton": versions()["Triton"]} if device == "cuda" else {}
    return {
        "device": device_name(torch.device(device)),
        **gpu,
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": round(copy_bandwidth(device) / 1e9, 1),
        "torch": torch.__version__,
        "modgrad": modgrad.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
        "command": command,
    }


def commit() -> str:
    """Of the sources that run: MODGRAD_COMMIT, or what git knows of them."""
    if told := os.environ.get("MODGRAD_COMMIT"):
        return told
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, reads and writes counted."""
    source = torch.randn(2**25, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 2.0, most=50, device=device)
    return 2 * source.numel() * source.element_size() / (times["copy"].median / 1e3)


def flush(device: str) -> Flush:
    """For the last cache of this machine, or 32 MiB where that is not known."""
    if device == "cuda":
        return Flush(device, torch.cuda.get_device_properties(0).L2_cache_size)
    try:
        text = _CACHE.read_text().strip()
        return Flush(device, int(text.removesuffix("K")) * 1024)
    except (OSError, ValueError):
        return Flush(device, _USUAL_CACHE)
