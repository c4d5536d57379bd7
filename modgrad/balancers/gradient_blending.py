"""Gradient Blending: one weight for each head, by how it generalises when trained alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, Statistics

LEAST = 1e-6  # of O, in units of the loss: the rounding of a float32 loss of about 10


class GradientBlendingState(NamedTuple):
    weights: Tensor  # float32 [K], sum 1 unless given otherwise


@dataclass(frozen=True)
class GradientBlending:
    """Weights of whole losses that hold until an estimate replaces them.

    Loss 0 is the joint one and loss m + 1 the unimodal one of modality m, in the order of the
    modalities: ``L = sum_k weights[k] L_k``, for shared parameters too. ``BlendEstimator`` measures
    how each head generalises and puts ``blending_weights`` into ``modulator.state``; until then
    the weights are those given here.

    Args:
        weights: a number for "joint" and for each modality, or one for each loss in their order;
            None means 1 / K each.

    Raises:
        ValueError: a weight that is negative or not finite, or none above 0; in ``init``, other
            names or another number of weights than of losses.

    Source: Wang, Tran and Feiszli, What Makes Training Multi-modal Classification Networks Hard?,
    CVPR 2020, proposition 1.
    """

    weights: Mapping[str, float] | Sequence[float] | None = None
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        given = self.weights
        items = given.items() if isinstance(given, Mapping) else enumerate(given)
        for key, weight in items:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`weights[{key!r}]` is {weight}, allowed: finite and >= 0")
        if not any(given.values() if isinstance(given, Mapping) else given):
            raise ValueError(f"`weights` is {given}, allowed: at least one above 0")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> GradientBlendingState:
        names = ["joint", *modalities]
        if num_losses != len(names):
            raise ValueError(
                "GradientBlending has a joint loss and one of each of "
                f"{', '.join(modalities)}: `losses` names {num_losses}, allowed: {len(names)}"
            )
        given = self.weights
        if isinstance(given, Mapping):
            if set(given) != set(names):
                raise ValueError(f"`weights` names {list(given)}, allowed: all of {names}")
            given = [given[name] for name in names]
        elif given is None:
            given = [1 / num_losses] * num_losses
        if len(given) != num_losses:
            raise ValueError(f"`weights` has {len(given)} numbers, allowed: {num_losses}")
        return GradientBlendingState(torch.tensor(list(map(float, given)), device=device))

    def update(
        self, statistics: Statistics, state: GradientBlendingState
    ) -> tuple[Modulation, GradientBlendingState]:
        return Modulation(state.weights), state


def blending_weights(gain: Tensor, overfitting: Tensor, floor: Tensor, previous: Tensor) -> Tensor:
    """``w_k = max(G_k, 0) / max(O_k, floor_k)^2``, divided by their sum. Nothing is read back.

    The minimum over the simplex of ``sum_k (w_k O_k)^2 / (sum_k w_k G_k)^2``, where errors are
    independent. Limits: O, a negative one too, is at least `floor` and 1e-6; a head that lost
    (G <= 0), or whose G, O or floor is not finite, has weight 0; where all have, `previous` stays.

    Args:
        gain: G [K], by how much the held-out loss fell.
        overfitting: O [K], by how much the gap between held-out and training loss grew.
        floor: [K], the least O that is believed.
        previous: [K]

    Returns:
        float64 [K]
    """
    gain, overfitting, floor = gain.double(), overfitting.double(), floor.double()
    known = gain.isfinite() & overfitting.isfinite() & floor.isfinite()
    believed = torch.maximum(overfitting, floor).clamp(min=LEAST)
    raw = gain.clamp(min=0) / believed.square()
    raw = torch.where(known, raw, 0.0)
    total = raw.sum()
    return torch.where(total > 0, raw / total, previous.double())
