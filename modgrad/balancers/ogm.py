"""OGM-GE: on-the-fly gradient modulation, with generalization enhancement."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, NoState, Ruled
from modgrad.rules import Rule


@dataclass(frozen=True)
class OGM(Ruled[NoState]):
    """Slow down the modality that is ahead: weights from the discrepancy ratio of the scores.

    With score s_m, the mean probability of the true class from modality m alone:

        rho_m    = mean over n != m of s_m / s_n          (discrepancy ratio)
        weight_m = 1 - tanh(alpha rho_m)  if rho_m > 1, else 1             form "jump"
        weight_m = 1 - tanh(alpha relu(rho_m - 1))                         form "continuous"
        g_m      <- weight_m g_m + noise std(g_m) z,      z ~ N(0, 1), per gradient tensor

    The paper's weight jumps at rho = 1, from 1 to 1 - tanh(alpha). Where a ratio is undefined (both
    scores 0, or one not a number) no modality is modulated; a score of 0 beside a positive one
    gives rho = inf and weight 0.

    Args:
        alpha: strength, >= 0. The authors use 0.1 (VGGSound) to 0.8 (CREMA-D).
        noise: GE noise in units of the gradient's own standard deviation, >= 0; the paper's OGM-GE
            is 1, added to every modality; 0 is OGM without GE.
        form: "jump" is the paper's, and the released code's since May 2022; "continuous" is the
            code's before, and of what was copied from it then.

    Source: Peng et al., Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
    eqs. 8 to 12. The paper has M = 2; for more, the ratio is the mean of the pairwise ones, as its
    authors advise. The released code modulates the 4-dimensional (convolution) weights only; here
    the user's choice of modalities decides. A window of epochs, in the paper, is ``Between``.
    """

    alpha: float = 0.8
    noise: float = 0.0
    form: Literal["jump", "continuous"] = "jump"
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __post_init__(self) -> None:
        for name in ("alpha", "noise"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise TypeError(f"`{name}` is {type(value).__name__}, allowed: a number")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` is {value}, allowed: finite and >= 0")
        if self.form not in ("jump", "continuous"):
            raise ValueError(f"`form` is {self.form!r}, allowed: 'jump', 'continuous'")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        if len(modalities) < 2:
            raise ValueError(f"OGM compares modalities: {modalities} is one, allowed: at least 2")
        return NoState()

    @property
    def rule(self) -> Rule:
        return Rule("ogm", (self.alpha, float(self.form == "continuous")))

    @property
    def adds_noise(self) -> bool:
        return self.noise > 0

    def modulation(self, weights: Tensor) -> Modulation:
        noise = torch.full_like(weights[:, 0], self.noise) if self.adds_noise else None
        return Modulation(weights, noise)
