"""How much of what a head learns between two checkpoints is overfitting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Overfitting:
    """What ``overfitting_to_generalization`` finds, by head."""

    ratio: dict[str, float]
    """|dO / dG|, >= 0: inf where the validation loss stayed and the gap did not, 0 where both
    stayed."""
    overfitting: dict[str, float]
    """dO: growth of validation minus training loss."""
    generalization: dict[str, float]
    """dG: fall of the validation loss; negative where it rose."""


def overfitting_to_generalization(
    train: Mapping[str, Sequence[float]], validation: Mapping[str, Sequence[float]]
) -> Overfitting:
    """OGR of each head between two checkpoints n < N.

        dO = (L^V - L^T)(N) - (L^V - L^T)(n),   dG = L^V(n) - L^V(N),   OGR = |dO / dG|

    Read it with the sign of dG: where that is negative the head got worse, whatever the ratio.

    Args:
        train: L^T at both checkpoints, (start, end) by head: means over samples in eval mode.
        validation: L^V, of samples that are not trained on.

    Raises:
        ValueError: heads differ; not two losses; NaN or infinity.

    Source: Wang, Tran and Feiszli, What Makes Training Multi-modal Classification Networks Hard?,
    CVPR 2020.
    """
    if set(train) != set(validation):
        raise ValueError(f"`validation` has {sorted(validation)}, allowed: {sorted(train)}")
    ratio, overfitting, generalization = {}, {}, {}
    for head in train:
        start_T, end_T = _two("train", head, train[head])
        start_V, end_V = _two("validation", head, validation[head])
        dO, dG = (end_V - end_T) - (start_V - start_T), start_V - end_V
        overfitting[head], generalization[head] = dO, dG
        ratio[head] = abs(dO / dG) if dG else (math.inf if dO else 0.0)
    return Overfitting(ratio, overfitting, generalization)


def _two(argument: str, head: str, losses: Sequence[float]) -> tuple[float, float]:
    values = [float(loss) for loss in losses]
    if len(values) != 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"`{argument}[{head!r}]` is {values}, allowed: two finite losses")
    return values[0], values[1]
