"""Which modality a network learned first, and how long the others waited."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class LearningOrder:
    """What ``learning_order`` finds."""

    order: tuple[str, ...]
    """The modalities, the first learned first."""
    half_time: dict[str, float]
    """When each curve first reached half of its plateau; inf where its plateau is too low."""
    length: float
    """Of the unimodal phase, t_last - t_first; inf where one is never learned."""
    ratio: float
    """t_last / t_first, at least 1; 1 where no modality is ever learned."""


def learning_order(
    curves: Mapping[str, Sequence[float]],
    times: Sequence[float] | None = None,
    *,
    least: float = 0.0,
) -> LearningOrder:
    """The unimodal phase, read off contribution curves: from t_A of the first to t_B of the last.

    t_m is the first time that curve m reaches half of its plateau, by linear interpolation; the
    plateau is the mean of the last tenth of the points, one at least.

    Args:
        curves: what each modality contributes over training, 0 meaning nothing: ``attributions`` at
            several checkpoints, or norms of total weights. At least 2, of equal length.
        times: of the points, increasing; by default 0, 1, 2, …
        least: a plateau at or below counts as never learned: give the noise of the curves.

    Raises:
        ValueError: one curve; lengths that differ; no points; NaN; times that do not increase.

    Source: the definition of t_A and t_B in Zhang, Latham and Saxe, Understanding Unimodal Bias in
    Multimodal Deep Linear Networks, ICML 2024, there of norms of weights.
    """
    if len(curves) < 2:
        raise ValueError(f"`curves` has {list(curves)}, allowed: at least 2")
    lengths = {name: len(curve) for name, curve in curves.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"`curves` have {lengths} points, allowed: equally many, at least one")
    n = next(iter(lengths.values()))
    t = list(range(n)) if times is None else [float(x) for x in times]
    if len(t) != n or any(not a < b for a, b in pairwise(t)):
        raise ValueError(f"`times` is {t}, allowed: {n} increasing numbers")
    half_time = {name: _half_time(name, curve, t, least) for name, curve in curves.items()}
    order = sorted(curves, key=lambda name: half_time[name])  # stable: ties in order
    first, last = half_time[order[0]], half_time[order[-1]]
    if last == first:
        return LearningOrder(tuple(order), half_time, 0.0, 1.0)
    ratio = last / first if first > 0 else math.inf
    return LearningOrder(tuple(order), half_time, last - first, ratio)


def _half_time(name: str, curve: Sequence[float], t: Sequence[float], least: float) -> float:
    values = [float(x) for x in curve]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"`curves[{name!r}]` holds NaN or infinity, allowed: finite numbers")
    tail = values[-max(1, len(values) // 10) :]
    plateau = sum(tail) / len(tail)
    if plateau <= max(least, 0.0):
        return math.inf
    half = plateau / 2
    i = next(i for i, value in enumerate(values) if value >= half)
    if i == 0:
        return t[0]
    part = (half - values[i - 1]) / (values[i] - values[i - 1])
    return t[i - 1] + part * (t[i] - t[i - 1])
