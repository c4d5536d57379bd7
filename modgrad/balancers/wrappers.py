"""What cuts across methods, balancer in, balancer out: window, interval, moving average, bounds."""

import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import (
    Balancer,
    Modulation,
    StateT,
    Statistics,
    check_balancer,
    map_state,
)


@dataclass(frozen=True)
class _Wrapper(Generic[StateT]):
    balancer: Balancer[StateT]

    def __post_init__(self) -> None:
        check_balancer(self.balancer)

    @property
    def needs(self) -> frozenset[str]:
        return self.balancer.needs

    @property
    def adds_noise(self) -> bool:
        """Whether it is known to: what cannot be at the boundary is refused before training."""
        return getattr(self.balancer, "adds_noise", False)


def _refuse_scales_per_tensor(wrapper: str, balancer: Balancer[Any]) -> None:
    """The number of tensors is not known when the state is made."""
    if "tensor_gram" in balancer.needs:
        raise ValueError(f"`balancer` of {wrapper} has weights per tensor, allowed: per modality")


def _like(weights: Tensor, modulation: Modulation) -> Tensor:
    """Weights [M, K] in a modulation's form: those of whole losses are equal in every row."""
    return weights[0] if modulation.weights.dim() == 1 else weights


@dataclass(frozen=True)
class Between(_Wrapper[StateT]):
    """Balance while ``start <= t < stop``; outside, weights are 1, noise is 0, state stands still.

    Args:
        balancer: what to apply inside the window.
        start: first step or epoch, >= 0.
        stop: first one after the window; None means no end.
        unit: "step" counts modulated steps; "epoch" is what ``Modulator.set_epoch`` was told.
    """

    start: int = 0
    stop: int | None = None
    unit: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("step", "epoch"):
            raise ValueError(f"`unit` is {self.unit!r}, allowed: 'step', 'epoch'")
        if self.start < 0:
            raise ValueError(f"`start` is {self.start}, allowed: >= 0")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"`stop` is {self.stop}, allowed: > `start` = {self.start}, or None")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> StateT:
        return self.balancer.init(modalities, num_losses, device)

    def update(self, statistics: Statistics, state: StateT) -> tuple[Modulation, StateT]:
        now = statistics.step if self.unit == "step" else statistics.epoch
        inside = now >= self.start
        if self.stop is not None:
            inside = inside & (now < self.stop)
        modulation, new = self.balancer.update(statistics, state)
        return (
            Modulation(
                torch.where(inside, modulation.weights, 1.0),
                None if modulation.noise is None else torch.where(inside, modulation.noise, 0.0),
                None
                if modulation.tensor_scale is None
                else torch.where(inside, modulation.tensor_scale, 1.0),
            ),
            map_state(lambda a, b: torch.where(inside, a, b), new, state),
        )


class EveryState(NamedTuple):
    weights: Tensor  # [M, K] as last computed
    noise: Tensor  # [M]
    inner: Any


@dataclass(frozen=True)
class Every(_Wrapper[StateT]):
    """Compute new weights in steps 0, ``interval``, 2 ``interval``, … and hold them in between.

    Args:
        balancer: what to compute; it does not see the steps in between.
        interval: >= 1.
    """

    interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval < 1:
            raise ValueError(f"`interval` is {self.interval}, allowed: >= 1")
        _refuse_scales_per_tensor("Every", self.balancer)

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> EveryState:
        M = len(modalities)
        inner = self.balancer.init(modalities, num_losses, device)
        ones, zeros = torch.ones(M, num_losses, device=device), torch.zeros(M, device=device)
        return EveryState(ones, zeros, inner)

    def update(self, statistics: Statistics, state: EveryState) -> tuple[Modulation, EveryState]:
        due = statistics.step % self.interval == 0
        modulation, inner = self.balancer.update(statistics, state.inner)
        fresh = EveryState(
            modulation.weights.to(state.weights).broadcast_to(state.weights.shape),
            state.noise if modulation.noise is None else modulation.noise.to(state.noise),
            inner,
        )
        held = map_state(lambda a, b: torch.where(due, a, b), fresh, state)
        noise = None if modulation.noise is None else held.noise
        return Modulation(_like(held.weights, modulation), noise), held


class SmoothedState(NamedTuple):
    average: Tensor  # [M, K] decayed sum of the weights
    mass: Tensor  # [] decayed sum of ones
    inner: Any


@dataclass(frozen=True)
class Smoothed(_Wrapper[StateT]):
    """Exponential moving average of the weights, unbiased from the first step on.

        average <- decay average + (1 - decay) w,   mass <- decay mass + (1 - decay)
        weights  = average / mass

    Args:
        balancer: whose weights w are averaged; its noise is passed on as it is.
        decay: in [0, 1).
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` is {self.decay}, allowed: [0, 1)")
        _refuse_scales_per_tensor("Smoothed", self.balancer)

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> SmoothedState:
        inner = self.balancer.init(modalities, num_losses, device)
        zeros = torch.zeros(len(modalities), num_losses, device=device)
        return SmoothedState(zeros, torch.zeros((), device=device), inner)

    def update(
        self, statistics: Statistics, state: SmoothedState
    ) -> tuple[Modulation, SmoothedState]:
        modulation, inner = self.balancer.update(statistics, state.inner)
        average = self.decay * state.average + (1 - self.decay) * modulation.weights
        mass = self.decay * state.mass + (1 - self.decay)
        new = SmoothedState(average.to(state.average), mass, inner)
        return modulation._replace(weights=_like(new.average / mass, modulation)), new


@dataclass(frozen=True)
class Clipped(_Wrapper[StateT]):
    """Weights clamped to [low, high].

    Args:
        balancer: whose weights are clamped.
        low: >= 0.
        high: >= low.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"`low`, `high` are {self.low}, {self.high}, allowed: 0 <= low <= high"
            )

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> StateT:
        return self.balancer.init(modalities, num_losses, device)

    def update(self, statistics: Statistics, state: StateT) -> tuple[Modulation, StateT]:
        modulation, new = self.balancer.update(statistics, state)
        return modulation._replace(weights=modulation.weights.clamp(self.low, self.high)), new
