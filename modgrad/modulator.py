"""The engine: measures statistics, asks the balancer, modulates the gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from typing_extensions import Unpack

from modgrad import checks, several_losses
from modgrad.autograd import scale_backward
from modgrad.backends import select
from modgrad.balancers.base import MEASURED, OBSERVED, Balancer, Statistics, check_balancer
from modgrad.decider import Decider
from modgrad.distributed import is_sharded
from modgrad.held import HeldParameters
from modgrad.memory import Memory
from modgrad.meter import Foreseen, Meter
from modgrad.modalities import Modalities
from modgrad.observation import Observation, Observed, check_keywords, in_order
from modgrad.one_loss import OneLoss
from modgrad.records import Decision, LastStep, Pending
from modgrad.seen import Seen


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
        self.modalities, self.balancer, self.backend = modalities, balancer, backend
        self._meter = Meter(frozenset(balancer.needs) | set(record), len(modalities), backend)
        self.process_group = process_group
        if at not in ("parameters", "boundary"):
            raise ValueError(f"`at` is {at!r}, allowed: 'parameters', 'boundary'")
        if not self._meter.names <= MEASURED:
            unknown = sorted(self._meter.names - MEASURED)
            raise ValueError(f"unknown statistics {unknown}, allowed: {sorted(MEASURED)}")
        if at == "boundary" and not balancer.needs <= OBSERVED:
            late = sorted(balancer.needs - OBSERVED)
            raise ValueError(f"{late} are known after backward only, allowed: at='parameters'")
        if at == "boundary" and getattr(balancer, "adds_noise", False):
            raise ValueError("GE noise needs the gradients, allowed: at='parameters', or noise=0")
        if not losses or len(set(losses)) < len(losses):
            raise ValueError(f"`losses` is {list(losses)}, allowed: different names, at least one")
        self.at, self.losses = at, losses
        self._takes_losses = len(losses) > 1 or not self._meter.names.isdisjoint(
            {"losses", "gram", "tensor_gram"}
        )
        asked_by = type(balancer).__name__
        self._seen = Seen(self._meter.names, modalities.names, asked_by, backend)
        if at == "boundary" and self._takes_losses:
            raise ValueError("several losses are balanced at='parameters' only")
        self._optimizer = optimizer
        self._parameters = HeldParameters(optimizer, modalities)
        device = self._parameters.own.parameters[0].device
        select(device, backend)  # an unusable backend is an error here, not in the first step
        self._enabled = True
        self._folded = False
        self.last: LastStep | None = None
        self._decided: Decision | None = None  # before step, by observe or backward
        self._boundary_used = self._boundary_passed = False
        self._foreseen: Foreseen | None = None

        state = balancer.init(modalities.names, len(self.losses), device)
        self._memory = Memory(modalities.names, state, seed, device)
        size = len(modalities), len(self.losses)
        self._decide = Decider(balancer, self._memory, *size, self._takes_losses, backend)
        self._one_loss = OneLoss(self._parameters, self._meter, self._decide)
        self._weights = torch.ones(len(modalities), device=device)

    @property
    def enabled(self) -> bool:
        """Set to False to let gradients pass unchanged and unmeasured."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        if not value:  # no weight of an earlier step lives on at the boundary
            self._weights.fill_(1.0)
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

    def set_epoch(self, epoch: int) -> None:
        """Tell the balancer which epoch it is, for windows in epochs."""
        self._memory.set_epoch(epoch)

    def _follow(self, device: torch.device) -> None:
        if self._memory.follow(device):
            self._weights = self._weights.to(device)

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
        if self._boundary_passed:
            raise RuntimeError("at='boundary', but `observe` comes after backward: too late")
        self._follow(self._parameters.own.parameters[0].device)
        batch = self._seen.measure(observation, self._weights.device)
        if self.at == "boundary":
            decision = self._decide(self._known(batch))
            if decision.modulation.noise is not None:
                raise ValueError("GE noise needs the gradients, allowed: at='parameters'")
            self._weights.copy_(decision.weights[:, 0])
            self._decided = decision
            self._seen.replace(batch)
        else:
            self._seen.add(batch)

    @property
    def weights(self) -> Tensor:
        """This step's weights, float32 [M]: one tensor, refilled by ``observe`` at the boundary."""
        self._boundary_used = True
        return self._weights

    def scale_backward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features unchanged; their gradients will be scaled by this step's weights."""
        ordered = in_order("features", features, self.modalities.names)
        scaled = scale_backward(ordered, self.weights, backend=self.backend)
        self._boundary_passed = False
        for x in scaled.values():
            if x.requires_grad and not torch.compiler.is_compiling():
                x.register_hook(self._note_backward)
        return scaled

    def _note_backward(self, grad: Tensor) -> None:
        self._boundary_passed = True

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
        values = list(in_order("losses", losses, self.losses).values())
        for name, value in losses.items():
            if value.numel() != 1:
                found = f"has shape {list(value.shape)}"
                raise ValueError(f"`losses[{name!r}]` {found}, allowed: a scalar")
            if not value.requires_grad:
                raise ValueError(
                    f"`losses[{name!r}]` requires no gradient, allowed: a loss that leads to"
                    " trainable parameters (is it detached, are its encoders frozen?)"
                )
        values = [value.reshape(()) for value in values]
        held = self._parameters.refresh()
        if not self.enabled:
            trained = [p for p in held if p.requires_grad]
            several_losses.backward_of_sum(torch.stack(values).sum(), trained, self.process_group)
            return
        self._seen.require()
        own, shared = self._parameters.trainable()
        if any(map(is_sharded, own.parameters)):
            raise NotImplementedError(
                "backward of several losses with sharded parameters (DTensor), allowed: one loss,"
                " or parameters that are not sharded"
            )
        self._follow(self._parameters.own.parameters[0].device)
        self._decided = several_losses.backward(
            values, own, shared, self._known(), self._meter, self._decide, self.process_group
        )

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
        at_once = self._one_loss.takes_one_op(grads, self._grad_scale)
        pending = self.decide(grads, ahead=at_once)
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
        self._follow(self._parameters.own.parameters[0].device)
        is_unprepared = self._decided is None and (self._takes_losses or self._seen.is_missing)
        if is_unprepared and self._parameters.learning_rate_is_zero():
            return None  # how torch.distributed.checkpoint makes an optimizer create its state
        self._seen.require()
        if self.at == "boundary" and not self._boundary_used:
            raise RuntimeError("at='boundary', but `scale_backward` was not called in forward")
        if self._takes_losses and self._decided is None:
            raise RuntimeError(
                f"call backward({{…}}) with {list(self.losses)}, not loss.backward()"
            )
        if self._decided is not None:
            return Pending(self._decided, applied=True)
        scale = self._grad_scale
        return self._one_loss.decide(
            self._known(), grads, ahead=ahead, grad_scale=scale, foreseen=foreseen
        )

    @property
    def _grad_scale(self) -> Tensor | None:
        """By which gradients are too large: set by GradScaler on fused optimizers."""
        return getattr(self._optimizer, "grad_scale", None)

    def foresee(self, grads: Sequence[Tensor | None], sq_norms: Tensor) -> None:
        """Spare the next step a reading: the squared norms of its gradients, as they are now.

        Args:
            grads: those of ``held``; where others come, or these are changed, they are measured.
            sq_norms: float64 [M], by modality.
        """
        if "grad_sq_norms" in self._meter.names:
            self._foreseen = Foreseen.of(grads, sq_norms)

    def _known(self, batch: Observed | None = None) -> Statistics:
        """What is known without gradients: of this batch, or of all since the last step."""
        means = self._seen.means(self.process_group, batch)
        return Statistics(self._memory.step, self._memory.epoch, **means)

    def forget(self) -> None:
        """Drop what was observed and decided since the last step: of a batch that is skipped."""
        self._seen.replace(None)
        self._decided = None

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
            self._weights.copy_(decision.weights[:, 0])
        # before the state, of which the weights may be a part, is refilled
        self.last = decision.as_last(self.modalities.names, self._takes_losses)
        self._memory.advance(decision.state, getattr(self._optimizer, "found_inf", None))
        self.forget()
        self._boundary_used = self._boundary_passed = False

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
