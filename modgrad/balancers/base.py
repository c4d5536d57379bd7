"""What a balancer is: two pure functions, from statistics to weights.

Shape letters: M modalities, K losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

StateT = TypeVar("StateT", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Statistics:
    """What a balancer reads in a step. A field is None unless the balancer's ``needs`` names it."""

    step: Tensor
    """int64 []: steps modulated so far, 0 in the first."""
    epoch: Tensor
    """int64 []: as told to ``Modulator.set_epoch``, 0 until then."""
    scores: Tensor | None = None
    """float32 [M]: mean probability of the true class from each modality alone."""
    response_losses: Tensor | None = None
    """float32 [M]: mean cross entropy of each modality's mono-modal response."""
    grad_sq_norms: Tensor | None = None
    """float64 [M]: squared norm of each modality's gradients, before modulation."""
    param_sq_norms: Tensor | None = None
    """float64 [M]: squared norm of each modality's parameters, before the update."""
    losses: Tensor | None = None
    """float32 [K]: the values of the losses, in the order they were named in."""
    gram: Tensor | None = None
    """float64 [M, K, K]: inner products of the losses' gradients in each modality's parameters."""
    tensor_gram: Tensor | None = None
    """float64 [P, K, K]: the same in each parameter tensor, whose modality is `tensor_group`."""
    tensor_group: Tensor | None = None
    """int64 [P]: comes with `tensor_gram`."""


MEASURED = frozenset(f.name for f in fields(Statistics)) - {"step", "epoch", "tensor_group"}
"""The statistics that cost something: measured only where a balancer needs them."""

OBSERVED = frozenset({"scores", "response_losses"})
"""Those that come from ``observe``, and are known before backward."""


class Modulation(NamedTuple):
    """What to do to the gradients of a step."""

    weights: Tensor
    """Of two dimensions, broadcasts to [M, K]: loss k's gradient in modality m's parameters is
    scaled by it, and shared parameters get the plain sum. Of one, [K]: a weight of each loss for
    all parameters, shared ones too."""
    noise: Tensor | None = None
    """[M]: GE noise, as a multiple of each gradient tensor's own standard deviation."""
    tensor_scale: Tensor | None = None
    """[P]: a further factor of each parameter tensor's gradient, with several losses."""


class Balancer(Protocol[StateT]):
    """A balancing method: frozen, no parameters or modules, never reads a value on the host."""

    @property
    def needs(self) -> frozenset[str]:
        """The fields of ``Statistics`` that ``update`` reads, out of ``MEASURED``; a constant of
        the class, or a property of the wrapped balancer or the hyperparameters."""

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> StateT:
        """The state before the first step: a NamedTuple of tensors, or of such tuples."""

    def update(self, statistics: Statistics, state: StateT) -> tuple[Modulation, StateT]:
        """The modulation of this step and the next state; changes nothing in place."""


class NoState(NamedTuple):
    """The state of a balancer that remembers nothing."""


def map_state(f: Callable[..., Tensor], state: StateT, *others: StateT) -> StateT:
    """``f`` applied to the corresponding tensors of equally built states."""
    values = (
        f(*leaves) if isinstance(leaves[0], Tensor) else map_state(f, *leaves)
        for leaves in zip(state, *others, strict=True)
    )
    return type(state)(*values)


def state_tensors(state: tuple[Any, ...], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state under dotted names: what a checkpoint holds."""
    out: dict[str, Tensor] = {}
    for name, value in zip(state._fields, state, strict=True):  # type: ignore[attr-defined]
        if isinstance(value, Tensor):
            out[prefix + name] = value
        else:
            out |= state_tensors(value, f"{prefix}{name}.")
    return out
