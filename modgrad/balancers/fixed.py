"""Fixed weights, per modality or per loss: the baselines, and a learning rate per encoder."""

import math
from collections.abc import Mapping, Sequence
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
        TypeError: ``weights`` is no mapping.
        ValueError: a weight that is negative or not finite; in ``init``, an unknown modality.
    """

    weights: Mapping[str, float]
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            found = type(self.weights).__name__
            raise TypeError(f"`weights` is {found}, allowed: a mapping from modality to number")
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


class FixedLossWeightsState(NamedTuple):
    weights: Tensor  # [K]


@dataclass(frozen=True)
class FixedLossWeights:
    """``weights[k]`` for each loss, in the order of ``losses``: a weighted sum of the losses.

    Unimodal losses of equal or hand-tuned weights beside the joint one: the baseline for every
    method on several losses. The weights are of whole losses, for shared parameters too.

    Raises:
        ValueError: fewer than two weights, or one that is negative or not finite; in ``init``,
            another number of losses.
    """

    weights: Sequence[float]
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if len(self.weights) < 2:
            raise ValueError(f"`weights` is {self.weights}, allowed: at least two numbers")
        for k, weight in enumerate(self.weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`weights[{k}]` is {weight}, allowed: finite and >= 0")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> FixedLossWeightsState:
        if num_losses != len(self.weights):
            raise ValueError(
                f"`losses` names {num_losses}, allowed: {len(self.weights)},"
                " one for each number in `weights`"
            )
        values = [float(weight) for weight in self.weights]
        return FixedLossWeightsState(torch.tensor(values, device=device))

    def update(
        self, statistics: Statistics, state: FixedLossWeightsState
    ) -> tuple[Modulation, FixedLossWeightsState]:
        return Modulation(state.weights), state
