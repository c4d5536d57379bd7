"""The engine: measures statistics, asks the balancer, modulates the gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from typing_extensions import Unpack

from modgrad import boundary, checks
from modgrad.backends import select
from modgrad.balancers.base import OF_LOSSES, Balancer, check_balancer
from modgrad.boundary import Boundary
from modgrad.decider import Decider
from modgrad.held import HeldParameters
from modgrad.memory import Memory
from modgrad.meter import Foreseen, Meter
from modgrad.modalities import Modalities
from modgrad.observation import Observation, check_keywords, in_order
from modgrad.one_loss import OneLoss
from modgrad.records import Decision, LastStep, Pending
from modgrad.seen import Seen
from modgrad.several_losses import SeveralLosses


class Modulator:
    """Balances the modalities of one optimizer's model, once before every optimizer step.

    Made by ``attach`` and ``ModulatedOptimizer``. Nothing is read back to the host in a step.

    Args:
        modalities: which parameters belong to which modality.
        balancer: from statistics to weights.
        optimizer: holds the parameters.
        losses: the names of the losses that ``backward`` will be given, where there are several or
            the balancer reads them; by default the one that the user calls ``backward`` on.
        at: where weights are applied. "parameters" scales the parameters' gradients before the
            update. "boundary" scales the gradients that enter the encoders, at O(B D) instead of
            O(parameters): the same numbers for parameters that only ``scale_backward(features)``
            in the forward pass leads to; the balancer may need only what ``observe`` gives, and
            no noise.
        record: names of statistics to measure for ``last`` though the balancer does not need them.
        backend: which backend runs the ops; None takes the first that can run.
        seed: of the GE noise; the same on every rank.
        process_group: the ranks over which statistics are averaged; None means all.
    """

    def __init__(
        self,
        modalities: Modalities,
        balancer: Balancer[Any],
        optimizer: Optimizer,
        *,
        losses: Sequence[str] = ("joint",),
        at: Literal["parameters", "boundary"] = "parameters",
        record: Iterable[str] = (),
        backend: str | None = None,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not isinstance(modalities, Modalities):
            raise TypeError(f"`modalities` is {type(modalities).__name__}, allowed: Modalities")
        check_balancer(balancer)
        losses, record = checks.names("losses", losses), checks.names("record", record)
        if at not in ("parameters", "boundary"):
            raise ValueError(f"`at` is {at!r}, allowed: 'parameters', 'boundary'")
        if not losses or len(set(losses)) < len(losses):
            raise ValueError(f"`losses` is {list(losses)}, allowed: different names, at least one")
        names, M = modalities.names, len(modalities)
        meter = Meter(frozenset(balancer.needs) | set(record), M, backend)
        self._takes_losses = len(losses) > 1 or not meter.names.isdisjoint(OF_LOSSES)
        if at == "boundary":
            boundary.check(balancer, meter.names, self._takes_losses)
        self.modalities, self.balancer, self.backend = modalities, balancer, backend
        self.process_group, self.at, self.losses = process_group, at, losses
        self._parameters = HeldParameters(optimizer, modalities)
        device = self._parameters.own.parameters[0].device
        select(device, backend)  # an unusable backend is an error here, not in the first step
        self._enabled = True
        self._folded = False
        self.last: LastStep | None = None
        self._decided: Decision | None = None  # before step, by observe or backward
        self._foreseen: Foreseen | None = None
        self._boundary = Boundary(names, device, backend)
        self._memory = Memory(names, balancer.init(names, len(losses), device), seed, device)
        asked_by = type(balancer).__name__
        self._seen = Seen(meter.names, names, asked_by, self._memory, backend, process_group)
        self._decide = Decider(balancer, self._memory, M, len(losses), self._takes_losses, backend)
        parts = self._parameters, meter, self._decide
        self._one_loss = OneLoss(*parts)
        self._several_losses = SeveralLosses(losses, *parts, process_group)
        self._foretell()

    @property
    def enabled(self) -> bool:
        """Set to False to let gradients pass unchanged and unmeasured."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if not value:  # no weight of an earlier step lives on at the boundary
            self._boundary.clear()
        self.forget()

    @property
    def held(self) -> list[nn.Parameter]:
        """The optimizer's parameters now; the same list until one is replaced."""
        return self._parameters.refresh()

    @property
    def owner(self) -> list[int]:
        """Of each of those, the index of its modality, -1 for shared."""
        return self._parameters.owners()

    @property
    def acts_in_backward(self) -> bool:
        """Whether gradients come with their weights: at the boundary, and of several losses."""
        return self.at == "boundary" or self._takes_losses

    @contextmanager
    def folded(self) -> Iterator[None]:
        """While a step decides for itself and folds the weights in: its pre-hook does nothing."""
        self._folded = True
        try:
            yield
        finally:
            self._folded = False

    @property
    def state(self) -> Any:
        """The balancer's state, a NamedTuple of device tensors, which every step refills."""
        return self._memory.state

    @state.setter
    def state(self, state: Any) -> None:
        self._memory.state = state
        self._foretell()

    def set_epoch(self, epoch: int) -> None:
        """Tell the balancer which epoch it is, for windows in epochs."""
        self._memory.set_epoch(epoch)
        self._foretell()

    def _foretell(self) -> None:
        """At the boundary, what depends on no observation is decided before forward comes by."""
        if self.at == "boundary" and self._enabled and not self._seen.names:
            decision = self._decide(self._seen.known())
            self._boundary.apply(decision)
            self._decided = decision

    def _follow(self) -> torch.device:
        """Where the parameters are now, and all that is kept of them too."""
        device = self._parameters.own.parameters[0].device
        if self._memory.follow(device):
            self._boundary.follow(device)
            self._foretell()
        return device

    @torch.no_grad()
    def observe(self, **observation: Unpack[Observation]) -> None:
        """Show the modulator a batch, between its forward and the optimizer's step.

        ``observe(logits=…, targets=…)``, ``observe(features=…, head=…, targets=…)`` for a
        late-fusion head, ``observe(responses=…, targets=…)``, or ``observe(scores=…)``: see
        ``Observation``. Once a batch; under gradient accumulation, means are over all samples. Does
        nothing where the balancer needs none of it.
        """
        check_keywords(observation)
        if not self.enabled or not self._seen.names:
            return
        self._boundary.require_time()
        batch = self._seen.measure(observation, self._follow())
        if self.at == "parameters":
            self._seen.add(batch)
            return
        decision = self._decide(self._seen.known(batch))
        self._boundary.apply(decision)
        self._decided = decision
        self._seen.replace(batch)

    @property
    def weights(self) -> Tensor:
        """Float32 [M], one tensor that is refilled: this step's weights at the boundary, for
        ``modgrad.scale_backward``; the last step's at the parameters."""
        return self._boundary.weights

    def scale_backward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features unchanged; at the boundary, their gradients will be scaled by this step's
        weights, which at the parameters act in ``step``."""
        if self.at == "parameters":
            return in_order("features", features, self.modalities.names)
        return self._boundary.scale_backward(features)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Instead of ``loss.backward()``: balance several losses, and fill the gradients.

        A balancer that weights whole losses costs one ordinary backward. One that looks at the
        losses' gradients gets them for the modalities' parameters, loss by loss, through no more of
        the graph than each needs; shared parameters get the sum of the losses. ``observe`` comes
        before, where scores are needed; ``step`` after.

        Args:
            losses: a scalar for each name in ``losses`` of the constructor.

        Raises:
            TypeError: no mapping, or a loss that is no tensor.
            ValueError: other names, or a loss that is no scalar or requires no gradient.
        """
        values = self._several_losses.checked(losses)
        self._parameters.refresh()
        if not self.enabled:
            self._several_losses.plain_backward(values)
            return
        self._seen.require()
        self._follow()
        self._decided = self._several_losses.backward(values, self._seen.known())

    @torch.no_grad()
    def modulate(self) -> None:
        """Balance the gradients that the optimizer is about to use. Called by its step.

        Raises:
            RuntimeError: the balancer needs ``observe``, and it was not called since the last
                step; several losses are named and ``backward`` was not called; weights are applied
                at the boundary and ``scale_backward`` was not called.
        """
        if self._folded:
            return
        grads = [p.grad for p in self.held]
        pending = self.decide(grads, ahead=self._one_loss.takes_one_op(grads))
        if pending is not None:
            measured = {} if pending.applied else self._one_loss.scale_(grads, pending)
            self.commit(pending, measured)

    @torch.no_grad()
    def decide(self, grads: Sequence[Tensor | None], *, ahead: bool = False) -> Pending | None:
        """Measure, and ask the balancer; None where gradients are to be used as they are.

        Nothing changes until ``commit``. Raises what ``modulate`` does.

        Args:
            grads: those of ``held``.
            ahead: where it can, decide before the norms are there, which a fused update measures on
                its way; with ``Pending.rule``, one update of all gradients.
        """
        foreseen, self._foreseen = self._foreseen, None  # it holds on to the gradients
        if not self.enabled:
            return None
        if not self._parameters.has_gradient(grads):  # frozen, or absent: a step of its own still
            self.forget()
            return None
        self._follow()
        is_unprepared = self._decided is None and (self._takes_losses or self._seen.is_missing)
        if is_unprepared and self._parameters.learning_rate_is_zero():
            return None  # how torch.distributed.checkpoint makes an optimizer create its state
        self._seen.require()
        if self.at == "boundary":
            self._boundary.require_use()
            self._foretell()  # again: a captured step makes its next state in every replay
        if self._takes_losses and self._decided is None:
            raise RuntimeError(
                f"call backward({{…}}) with {list(self.losses)}, not loss.backward()"
            )
        if self._decided is not None:
            return Pending(self._decided, applied=True)
        return self._one_loss.decide(self._seen.known(), grads, ahead=ahead, foreseen=foreseen)

    def foresee(self, grads: Sequence[Tensor | None], sq_norms: Tensor) -> None:
        """Spare the next step a reading: the squared norms of its gradients, as they are now.

        Args:
            grads: those of ``held``; where others come, or these are changed, they are measured.
            sq_norms: float64 [M], by modality.
        """
        if "grad_sq_norms" in self._one_loss.meter.names:
            self._foreseen = Foreseen.of(grads, sq_norms)

    def forget(self) -> None:
        """Drop what was observed and decided since the last step: of a batch that is skipped."""
        self._seen.replace(None)
        self._decided = None
        self._foretell()

    @torch.no_grad()
    def commit(self, pending: Pending, late: Mapping[str, Tensor]) -> None:
        """Keep the new state, except where GradScaler found infinities and the step is skipped.

        Args:
            late: the statistics in ``pending.late``, float64 [M].
        """
        if pending.late:
            pending = self._decide.after(pending, late)
        decision = pending.decision
        if not pending.applied:
            self._boundary.fill(decision.weights[:, 0])
        # before the state, of which the weights may be a part, is refilled
        self.last = decision.as_last(self.modalities.names, self._takes_losses)
        self._memory.advance(decision.state, self._parameters.found_inf)
        self.forget()
        self._boundary.end_step()

    def state_dict(self) -> dict[str, Any]:
        """Step, epoch, seed, and the balancer's state: plain containers and tensors."""
        return self._memory.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state of the same modalities and balancer; an error changes nothing."""
        self._memory.load_state_dict(state_dict)
        self.forget()

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where ``load_state_dict`` could not take this state."""
        self._memory.check_state_dict(state_dict)
