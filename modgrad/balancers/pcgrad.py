"""PCGrad: project each loss's gradient off the ones it conflicts with."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import NoState, Ruled
from modgrad.balancers.gram import check_several
from modgrad.rules import Rule


@dataclass(frozen=True)
class PCGrad(Ruled[NoState]):
    """Gradient surgery: the sum of the gradients, each without its parts against the others.

    In each modality, for each loss i, starting from p_i = g_i and for j != i in order:

        p_i    <- p_i - <p_i, g_j> / |g_j|^2 g_j   if <p_i, g_j> < 0
        weights = those w with  sum_k w_k g_k = sum_i p_i

    Weights are 1 without conflict and where the gram is not finite; a gradient that is 0 conflicts
    with none.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1. The
    paper draws the order of j anew in each step; here it is the order of the losses, so that a
    step is repeatable. With two losses there is only one order.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        check_several(self, num_losses)
        return NoState()

    @property
    def rule(self) -> Rule:
        return Rule("pcgrad")
