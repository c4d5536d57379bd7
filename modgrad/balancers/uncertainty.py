"""Uncertainty weighting: each loss over a variance that is learned beside the model."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, Statistics

BOUND = 10.0  # |s|: weights from 4.5e-5 to 2.2e4, so that one wild loss switches nothing off


class UncertaintyState(NamedTuple):
    log_variance: Tensor  # float32 [K]: s


@dataclass(frozen=True)
class UncertaintyWeighting:
    """Homoscedastic uncertainty: gradient descent on ``sum_k exp(-s_k) L_k + s_k / 2``.

    With s_k = log sigma_k^2, which starts at 0:

        weight_k = exp(-s_k) = 1 / sigma_k^2
        s_k     <- s_k - lr (1/2 - exp(-s_k) L_k),   within [-10, 10]

    A constant loss ends at weight 1 / (2 L_k). A step uses the s of before its update. The weights
    are of whole losses, for shared parameters too. A loss that is not finite leaves its s alone.

    This is the paper's objective for cross entropies. For a squared error it has
    1 / (2 sigma^2): pass half the squared error, and both read the same. The authors' example
    code has ``+ s_k`` instead, twice the objective of a halved loss; then weights end at 1 / L_k.

    Args:
        lr: learning rate of s, > 0.

    Source: Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics, CVPR 2018, eq. 10.
    """

    lr: float = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"`lr` is {self.lr}, allowed: finite and > 0")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> UncertaintyState:
        return UncertaintyState(torch.zeros(num_losses, device=device))

    def update(
        self, statistics: Statistics, state: UncertaintyState
    ) -> tuple[Modulation, UncertaintyState]:
        assert statistics.losses is not None
        s = state.log_variance
        weights = torch.exp(-s)
        slope = 0.5 - weights * statistics.losses
        stepped = (s - self.lr * slope).clamp(-BOUND, BOUND)
        return Modulation(weights), UncertaintyState(torch.where(slope.isfinite(), stepped, s))
