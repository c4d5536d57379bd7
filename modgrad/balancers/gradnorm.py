"""GradNorm: learn a weight of each loss so that all train at similar rates."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Ruled
from modgrad.balancers.gram import check_several
from modgrad.rules import Rule


class GradNormState(NamedTuple):
    weights: Tensor  # float32 [K]
    initial: Tensor  # float32 [K] losses of the first step, 0 before it


@dataclass(frozen=True)
class GradNorm(Ruled[GradNormState]):
    """Weights whose gradient norms follow the losses' relative inverse training rates.

    With G_k = w_k |grad L_k| over all modalities' parameters, and the ratio of each loss to its
    first value, l_k = L_k / L_k(0):

        r_k  = l_k / mean(l),   target_k = mean(G) r_k^alpha
        w_k <- w_k - lr sign(G_k - target_k) |grad L_k|       then w >= 0.001 and sum(w) = K

    A step uses the weights of before its update; they start at 1. They weight whole losses, for
    shared parameters too. The gradient in w is exact: the target is a constant, as in the paper.
    An update that is not finite leaves the weights as they are; a loss that is not finite and
    positive is not taken as the first value.

    Args:
        alpha: strength of the pull to equal rates, >= 0; the paper uses 1.5 for NYUv2.
        lr: learning rate of the weights, > 0; the step is lr times a gradient norm.

    Source: Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks, ICML 2018, eqs. 1 and 2, algorithm 1. The paper takes the gradients of the
    last shared layer; multimodal encoders share none, so here they are of all modalities'
    parameters. Plain gradient descent stands in for the optimizer of the weights.
    """

    alpha: float = 1.5
    lr: float = 0.025
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "losses"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"`alpha` is {self.alpha}, allowed: finite and >= 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"`lr` is {self.lr}, allowed: finite and > 0")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> GradNormState:
        check_several(self, num_losses)
        ones = torch.ones(num_losses, device=device)
        return GradNormState(ones, torch.zeros_like(ones))

    @property
    def rule(self) -> Rule:
        return Rule("gradnorm", (self.alpha, self.lr))
