"""MMPareto: the joint and the unimodal gradient of an encoder, combined without conflict."""

import math
from dataclasses import dataclass

import torch

from modgrad import rules
from modgrad.balancers.base import Modulation, NoState, Ruled, Statistics
from modgrad.rules import Rule


@dataclass(frozen=True)
class MMPareto(Ruled[NoState]):
    """Equal weights where joint and unimodal gradient agree, the min-norm point where they do not.

    Loss 0 is the joint one and loss m + 1 the unimodal one of modality m, in the order of the
    modalities. With g the gradient of loss 0 in encoder m, and u that of loss m + 1:

        k0       = 1/2  if <g, u> > 0,  else  <u - g, u> / |u - g|^2 clipped to [0, 1]
        k1       = 1 - k0,   h = 2 k0 g + 2 k1 u
        weights  = gamma lambda (2 k0, 2 k1),   lambda = max(1, |g + u| / |h|)

    Other unimodal losses have weight 1 there; their gradient in encoder m is normally 0. Limits: a
    gradient that is 0 counts as agreeing; lambda is 1 where h = 0 (|h| < 1e-4 of the gradients);
    weights are 1 where the gram is not finite. Unimodal heads belong to no modality: like all
    shared parameters they get the plain sum.

    Args:
        gamma: scale of the encoders' gradients, > 0; the paper's 1.5 acts on agreeing ones too.
        per_tensor: a lambda of each parameter tensor, from g, u and h in that tensor, as in the
            released code, instead of one of the encoder; k is the encoder's in both.

    Source: Wei and Hu, MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance,
    ICML 2024. The released code puts 0.001 and 0.999 for a k of 0 and 1, which gradients that
    conflict do not reach.
    """

    gamma: float = 1.5
    per_tensor: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gram", "tensor_gram"} if self.per_tensor else {"gram"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"`gamma` is {self.gamma}, allowed: finite and > 0")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        if num_losses != len(modalities) + 1:
            raise ValueError(
                f"MMPareto has a joint loss and one of each of {', '.join(modalities)}: "
                f"`losses` names {num_losses}, allowed: {len(modalities) + 1}"
            )
        return NoState()

    @property
    def rule(self) -> Rule | None:
        return None if self.per_tensor else Rule("mmpareto", (self.gamma,))

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        if self.rule is not None:
            return super().update(statistics, state)
        assert statistics.gram is not None
        gram = statistics.gram
        assert statistics.tensor_gram is not None
        assert statistics.tensor_group is not None
        owner = statistics.tensor_group
        k0 = rules.mmpareto_share(gram, torch.arange(len(gram), device=gram.device))
        weights = rules.mmpareto_weights(torch.full_like(k0, 2 * self.gamma), k0)
        each = rules.mmpareto_lambda(statistics.tensor_gram, owner, k0[owner])
        each = torch.where(rules.is_finite(gram)[owner], each, 1.0).float()
        return Modulation(rules.or_plain(weights, gram), tensor_scale=each), state
