"""DWA: dynamic weight average, by how fast each loss fell between the last two epochs."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Modulation, Statistics
from modgrad.balancers.gram import check_several


class DWAState(NamedTuple):
    epoch: Tensor  # int64 [] that is being summed
    total: Tensor  # float64 [K] sum of the losses of this epoch
    number: Tensor  # float64 [K] of those losses
    last: Tensor  # float64 [K] mean losses of the epoch before; 0 while there is none
    previous: Tensor  # float64 [K] and of the one before that


@dataclass(frozen=True)
class DWA:
    """More weight for losses that fall slowly: a softmax over the ratios of epoch means.

    With L_k(e) the mean of loss k over epoch e:

        r_k      = L_k(e - 1) / L_k(e - 2)
        weight_k = K exp(r_k / temperature) / sum_j exp(r_j / temperature)

    The weights sum to K, hold for an epoch and weight whole losses, for shared parameters too. They
    are 1 in the first two epochs. Epochs are what ``modulator.set_epoch`` was told: without that
    call all is one epoch, and weights stay 1. Losses that are not finite are not counted; where a
    mean is missing or not positive, weights are 1.

    Args:
        temperature: > 0; a higher one evens the weights out.

    Source: Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019, eq. 7.
    """

    temperature: float = 2.0
    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` is {self.temperature}, allowed: finite and > 0")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> DWAState:
        check_several(self, num_losses)
        zeros = torch.zeros(num_losses, dtype=torch.float64, device=device)
        epoch = torch.zeros((), dtype=torch.int64, device=device)
        return DWAState(epoch, zeros, zeros.clone(), zeros.clone(), zeros.clone())

    def update(self, statistics: Statistics, state: DWAState) -> tuple[Modulation, DWAState]:
        assert statistics.losses is not None
        losses = statistics.losses.double()
        ended = (statistics.epoch != state.epoch) & (state.number > 0).any()
        mean = state.total / state.number.clamp(min=1)
        last = torch.where(ended, mean, state.last)
        previous = torch.where(ended, state.last, state.previous)
        kept = torch.where(ended, 0.0, 1.0).double()
        valid = losses.isfinite()
        total = kept * state.total + torch.where(valid, losses, 0.0)
        number = kept * state.number + valid
        known = ((last > 0) & (previous > 0)).all()
        weights = losses.numel() * torch.softmax(last / previous / self.temperature, 0)
        weights = torch.where(known, weights, 1.0).float()
        epoch = statistics.epoch.clone()  # set_epoch may come before this state is kept
        return Modulation(weights), DWAState(epoch, total, number, last, previous)
