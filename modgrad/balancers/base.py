"""What a balancer is: two pure functions, from statistics to weights.

Shape letters: M modalities, K losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from modgrad import rules
from modgrad.rules import Rule

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

OF_LOSSES = frozenset({"losses", "gram", "tensor_gram"})
"""Those that come from the losses given to ``Modulator.backward``, by name."""


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
    """A balancing method: frozen, no parameters or modules, never reads a value on the host.

    One that adds noise may have a property ``adds_noise`` that is true: at the boundary it is
    refused by the constructor then, not by the first ``observe``.
    """

    @property
    def needs(self) -> frozenset[str]:
        """The fields of ``Statistics`` that ``update`` reads, out of ``MEASURED``; a constant of
        the class, or a property of the wrapped balancer or the hyperparameters."""

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> StateT:
        """The state before the first step: a NamedTuple of tensors, or of such tuples."""

    def update(self, statistics: Statistics, state: StateT) -> tuple[Modulation, StateT]:
        """The modulation of this step and the next state; changes nothing in place.

        The state's tensors keep their shapes and dtypes. ``statistics.epoch`` is refilled by
        ``set_epoch``: a state that remembers it holds a clone.
        """


def check_balancer(balancer: object) -> None:
    """Raise TypeError unless it is a balancer, by what it has; a class is none yet."""
    if isinstance(balancer, type):
        name = balancer.__name__
        raise TypeError(f"`balancer` is the class {name}, allowed: an instance, such as {name}(…)")
    if not all(hasattr(balancer, name) for name in ("needs", "init", "update")):
        found = repr(balancer) if isinstance(balancer, str) else type(balancer).__name__
        raise TypeError(f"`balancer` is {found}, allowed: an instance, such as modgrad.OGM(…)")


class NoState(NamedTuple):
    """The state of a balancer that remembers nothing."""


class Ruled(Generic[StateT]):
    """A balancer whose formula is a rule, in ``modgrad/rules.py``: kernels can evaluate it too."""

    @property
    def rule(self) -> Rule | None:
        """None where these hyperparameters have no rule."""
        raise NotImplementedError

    def modulation(self, weights: Tensor) -> Modulation:
        """What the rule's weights, float32 [M, K], amount to."""
        assert self.rule is not None
        return Modulation(weights[0] if rules.check(self.rule).weighs_losses else weights)

    def update(self, statistics: Statistics, state: StateT) -> tuple[Modulation, StateT]:
        """As ``Balancer.update``, by the definition of the rule."""
        assert self.rule is not None
        statistic = ruled_by(self.rule, statistics)
        weights, new = rules.weights(self.rule, statistic, statistics.losses, tuple(state))
        return self.modulation(weights), next_state(state, new)


class Ahead(Generic[StateT]):
    """A balancer whose weights are in its state: the statistics only make the next one.

    They may come later than the weights then, from the update that reads the gradients anyway.
    """

    def ahead(self, state: StateT) -> Modulation:
        """The modulation that ``update`` gives with this state, whatever the statistics."""
        raise NotImplementedError


def rule_of(balancer: Balancer[Any]) -> Rule | None:
    """The rule that says all that ``update`` does; None where there is none.

    A subclass that overrides ``update`` alone has left its parent's rule behind.
    """
    kind: type = type(balancer)
    return balancer.rule if isinstance(balancer, Ruled) and _rules_update(kind) else None


@cache
def _rules_update(kind: type) -> bool:
    """Whether the rule stands in the class that has ``update``, or in one below."""
    with_either = [c for c in kind.__mro__ if {"rule", "update"} & vars(c).keys()]
    return "rule" in vars(with_either[0])


def ruled_by(rule: Rule, statistics: Statistics) -> Tensor:
    """The statistic that the rule reads: scores [M], or a gram [M, K, K]."""
    kind = rules.check(rule)
    found = statistics.scores if kind.reads == "scores" else statistics.gram
    if kind.reads == "gram" and not kind.compares_losses and statistics.grad_sq_norms is not None:
        found = statistics.grad_sq_norms[:, None, None]
    assert found is not None
    return found


def next_state(state: StateT, new: Sequence[Tensor]) -> StateT:
    """The state with a rule's new tensors, of which it has none or all."""
    return type(state)(*new) if new else state


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
