"""The simplest balancer that needs no scores: it serves regressions."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import Modulation, NoState, Statistics


@dataclass(frozen=True)
class EqualNorms:
    """Every modality's gradient gets the mean norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad_sq_norms"})

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        norms = statistics.grad_sq_norms.sqrt()
        return Modulation(torch.where(norms > 0, norms.mean() / norms, 1.0)[:, None]), state
