"""AGM: adaptive gradient modulation, by how each modality does against its own history."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, Statistics

_LOG_OF_LARGEST_FLOAT32 = 88.0  # it is 88.72
_LOG_OF_LARGEST_FLOAT64 = 709.0  # it is 709.78


class AGMState(NamedTuple):
    mean: Tensor  # float64 [M] running means of the responses' losses; 0 before the first
    number: Tensor  # int64 [] of the steps in them


@dataclass(frozen=True)
class AGM:
    """Speed up the modality that does worse, relative to the others, than it used to.

    With s_m the mean cross entropy of modality m's mono-modal response:

        r_m      = exp(M / (M - 1) (mean(s) - s_m))       now: > 1 where m is ahead of the others
        tau_m    = the same of the running means of s, over all steps before this one; at first, 1
        weight_m = exp(alpha clamp(tau_m - r_m, -cap, cap))

    Apply with ``at="boundary"``, to the responses: ``logits = sum(responses.values())`` with
    ``responses = optimizer.modulator.scale_backward(mono_modal_responses(...))``. Weights go back
    to 1 where r_m settles, whoever is ahead. Where a loss is not finite, weights are 1 and the
    running means stay as they are.

    Args:
        alpha: strength, >= 0. The authors use 1.5 (CREMA-D) and 2.5 (AV-MNIST).
        cap: > 0, on |tau_m - r_m|, with alpha cap <= 88, so that no weight overflows float32. A
            weight is at most exp(alpha cap), 22026 by default: clip gradients.

    Source: Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation,
    ICCV 2023. The released code has a cap, on one side, of 10 (CREMA-D), 7 (UR-Funny), or none; and
    its last weights stay in force after the epoch in which modulation ends, where ``Between`` goes
    back to 1.
    """

    alpha: float = 1.0
    cap: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset({"response_losses"})

    def __post_init__(self) -> None:
        for name in ("alpha", "cap"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise TypeError(f"`{name}` is {type(value).__name__}, allowed: a number")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"`alpha` is {self.alpha}, allowed: finite and >= 0")
        if not (math.isfinite(self.cap) and self.cap > 0):
            raise ValueError(f"`cap` is {self.cap}, allowed: finite and > 0")
        if self.alpha * self.cap > _LOG_OF_LARGEST_FLOAT32:
            raise ValueError(
                f"`alpha` times `cap` is {self.alpha * self.cap},"
                f" allowed: at most {_LOG_OF_LARGEST_FLOAT32:g}, as weights are float32"
            )

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> AGMState:
        if len(modalities) < 2:
            raise ValueError(f"AGM compares modalities: {modalities} is one, allowed: at least 2")
        mean = torch.zeros(len(modalities), dtype=torch.float64, device=device)
        return AGMState(mean, torch.zeros((), dtype=torch.int64, device=device))

    def update(self, statistics: Statistics, state: AGMState) -> tuple[Modulation, AGMState]:
        assert statistics.response_losses is not None
        s = statistics.response_losses.double()  # r reaches 1e8: float32 leaves tau - r no digit
        weights = torch.exp(
            self.alpha * (_ratios(state.mean) - _ratios(s)).clamp(-self.cap, self.cap)
        )
        valid = s.isfinite().all()
        number = state.number + valid
        mean = torch.where(valid, state.mean + (s - state.mean) / number.clamp(min=1), state.mean)
        return Modulation(torch.where(valid, weights, 1.0).float()[:, None]), AGMState(mean, number)


def _ratios(s: Tensor) -> Tensor:
    """How far each modality is ahead of the mean of the others, as a factor; 1 at s = 0."""
    ahead = s.numel() / (s.numel() - 1) * (s.mean() - s)
    return ahead.clamp(max=_LOG_OF_LARGEST_FLOAT64).exp()
