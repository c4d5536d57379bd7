"""Fixed weights per modality: the baseline, and a learning rate of its own for each encoder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, Statistics


class FixedWeightsState(NamedTuple):
    weights: Tensor  # [M]


@dataclass(frozen=True)
class FixedWeights:
    """``weights[m]`` from a mapping of modality to number; a modality not named has weight 1.

    With SGD this is a learning rate per modality (MSLR: Yao and Mihalcea, Modality-specific
    Learning Rates for Effective Multimodal Additive Late-fusion, Findings of ACL 2022). Adam
    divides a constant scale out again.

    Raises:
        ValueError: a weight that is negative or not finite; in ``init``, an unknown modality.
    """

    weights: Mapping[str, float]
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`weights[{name!r}]` is {weight}, allowed: finite and >= 0")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> FixedWeightsState:
        unknown = [name for name in self.weights if name not in modalities]
        if unknown:
            raise ValueError(f"`weights` names {unknown}, allowed: {', '.join(modalities)}")
        values = [float(self.weights.get(name, 1.0)) for name in modalities]
        return FixedWeightsState(torch.tensor(values, device=device))

    def update(
        self, statistics: Statistics, state: FixedWeightsState
    ) -> tuple[Modulation, FixedWeightsState]:
        return Modulation(state.weights[:, None]), state
