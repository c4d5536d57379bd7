"""EqualNorms: every modality's gradient gets the same norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import NoState, Ruled
from modgrad.rules import Rule


@dataclass(frozen=True)
class EqualNorms(Ruled[NoState]):
    """Scale each modality's gradient towards the mean norm of this step.

        weight_m = (mean_n |g_n| / |g_m|)^power, clipped to [1/cap, cap]

    It needs no scores, so it serves regressions too. The mean is over the modalities that have a
    gradient; one whose gradient is 0 has weight 1. Where a norm is not finite, all weights are 1.

    Args:
        power: 1 makes norms equal, 0 changes nothing; in (0, 1].
        cap: of a weight, at least 1: a modality that has converged is not blown up.

    Source: where GradNorm (Chen et al., ICML 2018) leads to with alpha = 0 and one loss a modality,
    taken in each step.
    """

    power: float = 1.0
    cap: float = 1e3
    needs: ClassVar[frozenset[str]] = frozenset({"grad_sq_norms"})

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1:
            raise ValueError(f"`power` is {self.power}, allowed: (0, 1]")
        if not 1 <= self.cap < float("inf"):
            raise ValueError(f"`cap` is {self.cap}, allowed: finite and >= 1")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        return NoState()

    @property
    def rule(self) -> Rule:
        return Rule("equal_norms", (self.power, self.cap))
