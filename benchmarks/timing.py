"""Interleaved timing: what disturbs the machine disturbs all providers alike."""

import random
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

import torch


class Measured(NamedTuple):
    """One provider's times in ms, and the median of its pairwise ratios to the first."""

    median: float
    q20: float
    q80: float
    ratio: float


def interleaved(
    providers: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: str = "cpu",
    warm_up: int = 3,
    prepare: Callable[[], object] = lambda: None,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Measured]:
    """Every provider once a round, in random order, after ``prepare``; each waited for."""
    order, names = random.Random(0), list(providers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for number in range(warm_up + rounds):
        for name in order.sample(names, len(names)):
            prepare()
            wait()
            start = time.perf_counter()
            providers[name]()
            wait()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
        progress()
    first = seconds[names[0]]
    out = {}
    for name, times in seconds.items():
        low, *_, high = quantiles(times, n=5)
        ratio = median(a / b for a, b in zip(times, first, strict=True))
        out[name] = Measured(1e3 * median(times), 1e3 * low, 1e3 * high, ratio)
    return out
