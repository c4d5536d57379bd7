"""Curves: what a call costs against one number, all others held."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from modgrad.bench import gradients, loss_gradients, losses
from modgrad.bench.case import Case, kernels

TENSORS = (10, 30, 100, 300, 1000, 3000, 10000, 20000)
PARAMETERS = (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8)
ON_GPU = (3 * 10**8, 10**9)
MODALITIES = (2, 4, 8, 16, 32)
LOSSES = (1, 2, 3, 4, 6, 8)
CLASSES = (10, 30, 100, 300, 1000, 3000, 10000)
BATCH = (16, 64, 256, 1024, 4096)

Point = tuple[str, int, Callable[[], Case]]


def points(device: str, quick: bool = False) -> Iterator[Point]:
    """Axis, value and the case, which holds the baseline and the backend that runs by default."""

    def keep(values: Sequence[int]) -> Sequence[int]:
        return values[:4] if quick else values

    for n in keep(TENSORS):
        for op in (gradients.group_sq_norms, gradients.modulate_):
            yield "tensors", n, partial(op, f"{n} of 64", device)
    for n in keep(PARAMETERS if device == "cpu" else PARAMETERS + ON_GPU):
        for op in (gradients.group_sq_norms, gradients.modulate_):
            yield "parameters", n, partial(op, f"100 of {n // 100}", device)
    for n in keep(LOSSES):
        yield "losses", n, partial(loss_gradients.group_gram, "100 of 10000", device, losses=n)
    for axis, values in (("modalities", MODALITIES), ("classes", CLASSES), ("batch", BATCH)):
        for n in keep(values):
            size: Any = {"batch": 64, "classes": 100, "modalities": 3, axis: n}
            yield axis, n, partial(losses.modality_scores, device=device, loop=False, **size)
            yield axis, n, partial(losses.modality_cross_entropy, device=device, **size)


def point(axis: str, value: int, build: Callable[[], Case], device: str) -> Case:
    """The case with two providers, and where on which curve it is."""
    case = build()
    first, ours = next(iter(case.providers)), f"modgrad, {kernels(device)[0]}"
    providers = {name: case.providers[name] for name in (first, ours)}
    config = {**case.config, "axis": axis, "value": value}
    # two providers only: others are not missed
    return replace(case, providers=providers, config=config, kind="scaling", cold=False, missing={})


def slope(values: Sequence[float], times: Sequence[float]) -> float:
    """Least squares in log-log over the upper half of the points: 1 is proportional.

    The lower half shows what a call costs at all.
    """
    pairs = sorted(zip(values, times, strict=True))[len(values) // 2 :]
    xs, ys = ([math.log(v) for v in column] for column in zip(*pairs, strict=True))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    across = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / across
