"""PMR: prototypical losses for the modality that lags, by the scores of the prototypes."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import Modulation, NoState, Statistics


@dataclass(frozen=True)
class PMR:
    """Weights of one prototypical loss per modality beside the joint one, from their scores.

    With score s_m, the mean probability of the true class by modality m's prototypes:

        lag_m    = mean over n != m of s_n / s_m
        weight_m = alpha clip(lag_m - 1, 0, 1)                 of modality m's prototypical loss
        weight'_m = -entropy  if lag_m < 1, else 0             of modality m's mean entropy

    The losses are the joint one, of weight 1, then the prototypical ones in the order of the
    modalities and, with ``entropy`` > 0, their entropies in the same order: K = M + 1, or 2 M + 1.
    These are weights of whole losses and cost one ordinary backward. Losses, scores and entropies
    come from ``Prototypes``. For M = 2 this is the paper's, lag_0 = 1/rho and lag_1 = rho; for more
    it is the mean ratio. Limits: a score of 0 beside a positive one lags without end, weight alpha;
    where a ratio is undefined (both 0, or one not a number) the weight is 0.

    Args:
        alpha: weight of a modality whose score is half of the others', >= 0.
        entropy: the paper's PER: a reward, of this weight, for undecided predictions of a modality
            that is ahead; >= 0.
        entropy_epochs: how many epochs of ``Modulator.set_epoch`` it lasts, >= 0; None means all.

    Source: Fan et al., PMR: Prototypical Modal Rebalance for Multimodal Learning, CVPR 2023. The
    released code has weight alpha for the modality of the smaller score, 0 for the other, and no
    entropy.
    """

    alpha: float = 1.0
    entropy: float = 0.0
    entropy_epochs: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __post_init__(self) -> None:
        for name in ("alpha", "entropy"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` is {value}, allowed: finite and >= 0")
        if self.entropy_epochs is not None and self.entropy_epochs < 0:
            raise ValueError(f"`entropy_epochs` is {self.entropy_epochs}, allowed: >= 0, or None")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        M = len(modalities)
        if M < 2:
            raise ValueError(f"PMR compares modalities: {modalities} is one, allowed: at least 2")
        allowed = 2 * M + 1 if self.entropy > 0 else M + 1
        if num_losses != allowed:
            parts = "a prototypical loss" + (" and an entropy" if self.entropy > 0 else "")
            raise ValueError(
                f"PMR has a joint loss and {parts} of each of {', '.join(modalities)}: "
                f"`losses` names {num_losses}, allowed: {allowed}"
            )
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        assert statistics.scores is not None
        s = statistics.scores
        ratios = (s[None, :] / s[:, None]).fill_diagonal_(0)  # [m, n]: s_n / s_m
        lag = ratios.sum(1) / (s.numel() - 1)
        parts = [s.new_ones(1), self.alpha * (lag - 1).clamp(0, 1).nan_to_num(0.0)]
        if self.entropy > 0:
            rewarded = lag < 1
            if self.entropy_epochs is not None:
                rewarded = rewarded & (statistics.epoch < self.entropy_epochs)
            parts.append(torch.where(rewarded, -self.entropy, 0.0))
        return Modulation(torch.cat(parts)), state
