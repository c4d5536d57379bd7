"""The engine: measures statistics, asks the balancer, modulates the gradients."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from typing_extensions import TypedDict, Unpack

from modgrad import ops
from modgrad.autograd import scale_backward
from modgrad.backends import select
from modgrad.balancers.base import (
    MEASURED,
    Balancer,
    Modulation,
    Statistics,
    map_state,
    state_tensors,
)
from modgrad.distributed import is_sharded, local, mean_over_ranks
from modgrad.modalities import Assignment, Modalities
from modgrad.observation import Observation, in_order, measure_scores

# 2^64 over the golden ratio, as a signed number: seeds of successive steps share no pattern.
_SEED_STRIDE = 0x9E3779B97F4A7C15 - 2**64


@dataclass(frozen=True)
class LastStep:
    """What the last step measured and did: device tensors in the order of the modalities."""

    modalities: tuple[str, ...]
    weights: Tensor  # float32 [M]
    noise: Tensor | None = None  # float32 [M]
    scores: Tensor | None = None  # float32 [M]
    grad_sq_norms: Tensor | None = None  # float64 [M], before modulation
    param_sq_norms: Tensor | None = None  # float64 [M], before the update

    def read(self) -> dict[str, dict[str, float]]:
        """The numbers on the host, by quantity and modality. This waits for the device."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tensors = {k: v.double() for k, v in named.items() if isinstance(v, Tensor)}
        values = torch.stack(list(tensors.values())).tolist()
        rows = zip(tensors, values, strict=True)
        return {name: dict(zip(self.modalities, row, strict=True)) for name, row in rows}


class Options(TypedDict, total=False):
    """Keyword arguments of ``Modulator``, passed on by ``attach`` and ``ModulatedOptimizer``."""

    at: Literal["parameters", "boundary"]
    record: Iterable[str]
    backend: str | None
    seed: int
    process_group: ProcessGroup | None


class Modulator:
    """Balances the modalities of one optimizer's model, once before every optimizer step.

    Made by ``attach`` and ``ModulatedOptimizer``. Nothing is read back to the host in a step.

    Args:
        modalities: which parameters belong to which modality.
        balancer: from statistics to weights.
        optimizer: holds the parameters.
        at: where weights are applied. "parameters" scales the parameters' gradients before the
            update. "boundary" scales the gradients that enter the encoders, at O(B D) instead of
            O(parameters): the same numbers for parameters that only ``scale_backward(features)``
            in the forward pass leads to; the balancer may need scores only, and no noise.
        record: names of statistics to measure for ``last`` though the balancer does not need them.
        backend: which backend runs the ops; None takes the first that can run.
        seed: of the GE noise; the same on every rank.
        process_group: the ranks over which scores are averaged; None means all.
    """

    def __init__(
        self,
        modalities: Modalities,
        balancer: Balancer[Any],
        optimizer: Optimizer,
        *,
        at: Literal["parameters", "boundary"] = "parameters",
        record: Iterable[str] = (),
        backend: str | None = None,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        if not isinstance(modalities, Modalities):
            raise TypeError(f"`modalities` is {type(modalities).__name__}, allowed: Modalities")
        self.modalities, self.balancer, self.backend = modalities, balancer, backend
        self.measured = frozenset(balancer.needs) | frozenset(record)
        self.process_group = process_group
        if at not in ("parameters", "boundary"):
            raise ValueError(f"`at` is {at!r}, allowed: 'parameters', 'boundary'")
        if not self.measured <= MEASURED:
            unknown = sorted(self.measured - MEASURED)
            raise ValueError(f"unknown statistics {unknown}, allowed: {sorted(MEASURED)}")
        if at == "boundary" and not balancer.needs <= {"scores"}:
            late = sorted(balancer.needs - {"scores"})
            raise ValueError(f"{late} are known after backward only, allowed: at='parameters'")
        self.at = at
        self._held: list[nn.Parameter] = []
        self._assignment = Assignment([], [])
        self._refresh(optimizer)
        device = self._assignment.parameters[0].device
        select(device, backend)  # an unusable backend is an error here, not in the first step
        self.enabled = True
        """Set to False to let gradients pass unchanged and unmeasured."""
        self.last: LastStep | None = None
        self._scores: tuple[Tensor, int] | None = None  # sum over samples, number of samples
        self._pending: tuple[Modulation, Any] | None = None  # decided before backward
        self._boundary_used = False

        self._state = balancer.init(modalities.names, 1, device)
        self._weights = torch.ones(len(modalities), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._seed = torch.tensor(seed, dtype=torch.int64, device=device)

    def _refresh(self, optimizer: Optimizer) -> None:
        """Look the parameters up again where the optimizer's are other tensors than before."""
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if len(held) != len(self._held) or any(
            a is not b for a, b in zip(held, self._held, strict=True)
        ):
            self._assignment = self.modalities.assign(held)
            self._held = held
            if not self._assignment.parameters:
                raise ValueError("the optimizer holds no parameter of any modality")

    def _follow(self, device: torch.device) -> None:
        """Move the state to where the parameters are now."""
        if self._step.device != device:
            self._state = map_state(lambda t: t.to(device), self._state)
            for name in ("_weights", "_step", "_epoch", "_seed"):
                setattr(self, name, getattr(self, name).to(device))

    def set_epoch(self, epoch: int) -> None:
        """Tell the balancer which epoch it is, for windows in epochs."""
        self._epoch.fill_(epoch)

    @torch.no_grad()
    def observe(self, **observation: Unpack[Observation]) -> None:
        """Show the modulator a batch, between its forward and the optimizer's step.

        ``observe(logits=…, targets=…)``, ``observe(features=…, head=…, targets=…)`` for a
        late-fusion head, or ``observe(scores=…)``: see ``Observation``. Once a batch; under
        gradient accumulation the scores are averaged over samples. Does nothing where no scores
        are needed.
        """
        if not self.enabled or "scores" not in self.measured:
            return
        self._follow(self._assignment.parameters[0].device)
        total, count = measure_scores(observation, self.modalities.names, self.backend)
        if total.device != self._weights.device:
            raise ValueError(f"scores are on {total.device}, allowed: {self._weights.device}")
        if self.at == "boundary":
            mean = mean_over_ranks(total, count, self.process_group)
            modulation, state = self._decide(Statistics(self._step, self._epoch, mean))
            if modulation.noise is not None:
                raise ValueError("GE noise needs the gradients, allowed: at='parameters'")
            self._weights.copy_(self._column(modulation.weights))
            self._pending = (modulation, state)
            self._scores = (total, count)
        elif self._scores is None:
            self._scores = (total, count)
        else:
            self._scores = (self._scores[0] + total, self._scores[1] + count)

    @property
    def weights(self) -> Tensor:
        """This step's weights, float32 [M]: one tensor, refilled by ``observe`` at the boundary."""
        self._boundary_used = True
        return self._weights

    def scale_backward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features unchanged; their gradients will be scaled by this step's weights."""
        ordered = in_order("features", features, self.modalities.names)
        return scale_backward(ordered, self.weights, backend=self.backend)

    @torch.no_grad()
    def modulate(self, optimizer: Optimizer) -> None:
        """Balance the gradients that the optimizer is about to use. Called by its step.

        Raises:
            RuntimeError: the balancer needs scores and ``observe`` was not called since the last
                step; weights are applied at the boundary and ``scale_backward`` was never called.
        """
        if not self.enabled:
            return
        self._refresh(optimizer)
        parameters, group = self._assignment
        present = [(p, g) for p, g in zip(parameters, group, strict=True) if p.grad is not None]
        if not present:
            return
        self._follow(present[0][0].device)
        if self._missing_observation():
            if _learning_rate_is_zero(optimizer):
                return  # how torch.distributed.checkpoint makes an optimizer create its state
            raise RuntimeError(
                f"{type(self.balancer).__name__} needs scores: call observe(...) between forward"
                " and step(), every step"
            )
        held = [p.grad for p, _ in present if p.grad is not None]
        grads, groups = local(held), [g for _, g in present]
        sharded = any(map(is_sharded, held))
        if sharded and not self.measured <= {"scores"}:
            raise NotImplementedError(f"{sorted(self.measured)} of sharded gradients (DTensor)")
        statistics = self._measure(optimizer, [p for p, _ in present], grads, groups)
        if self.at == "parameters":
            modulation, state = self._decide(statistics)
            weights = self._column(modulation.weights)
            if sharded and modulation.noise is not None:
                raise NotImplementedError("GE noise on sharded gradients (DTensor)")
            seed = None if modulation.noise is None else self._seed + self._step * _SEED_STRIDE
            ops.modulate_(grads, groups, weights, modulation.noise, seed, backend=self.backend)
            self._weights.copy_(weights)
        else:
            if not self._boundary_used:
                raise RuntimeError("at='boundary', but `scale_backward` was not called in forward")
            modulation, state = self._pending or self._decide(statistics)
        self._commit(optimizer, statistics, modulation, state)

    def _missing_observation(self) -> bool:
        return "scores" in self.measured and self._scores is None

    def _measure(
        self,
        optimizer: Optimizer,
        parameters: list[nn.Parameter],
        grads: list[Tensor],
        group: list[int],
    ) -> Statistics:
        scores = grad_sq_norms = param_sq_norms = None
        M = len(self.modalities)
        if self._scores is not None:
            scores = mean_over_ranks(*self._scores, self.process_group)
        if "grad_sq_norms" in self.measured:
            grad_sq_norms = ops.group_sq_norms(grads, group, M, backend=self.backend)
            scale = getattr(optimizer, "grad_scale", None)  # set by GradScaler on fused optimizers
            if scale is not None:
                grad_sq_norms = grad_sq_norms / scale.double().square()
        if "param_sq_norms" in self.measured:
            param_sq_norms = ops.group_sq_norms(parameters, group, M, backend=self.backend)
        return Statistics(self._step, self._epoch, scores, grad_sq_norms, param_sq_norms)

    def _decide(self, statistics: Statistics) -> tuple[Modulation, Any]:
        modulation, state = self.balancer.update(statistics, self._state)
        return modulation, state

    def _column(self, weights: Tensor) -> Tensor:
        """The weights [M, 1] of the one loss, as float32 [M]."""
        return weights.broadcast_to(len(self.modalities), 1)[:, 0].float()

    def _commit(
        self, optimizer: Optimizer, statistics: Statistics, modulation: Modulation, state: Any
    ) -> None:
        """Keep the new state, except where GradScaler found infinities and the step is skipped."""
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None:
            self._state = state
            self._step = self._step + 1
        else:
            keep = skipped.reshape(()) != 0
            self._state = map_state(lambda a, b: torch.where(keep, a, b), self._state, state)
            self._step = self._step + (~keep).long()
        self.last = LastStep(
            self.modalities.names,
            self._weights.clone(),
            modulation.noise,
            statistics.scores,
            statistics.grad_sq_norms,
            statistics.param_sq_norms,
        )
        self._scores = self._pending = None
        self._boundary_used = False

    def state_dict(self) -> dict[str, Any]:
        """Step, epoch, seed, and the balancer's state: plain containers and tensors."""
        return {
            "modalities": list(self.modalities.names),
            "step": self._step.clone(),
            "epoch": self._epoch.clone(),
            "seed": self._seed.clone(),
            "balancer": {k: v.clone() for k, v in state_tensors(self._state).items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state of the same modalities and balancer; an error changes nothing."""
        self.check_state_dict(state_dict)
        for name in ("step", "epoch", "seed"):
            setattr(self, f"_{name}", state_dict[name].to(self._step.device, copy=True))
        loaded = iter(state_dict["balancer"][name] for name in state_tensors(self._state))
        self._state = map_state(lambda t: next(loaded).to(t, copy=True), self._state)
        self._scores = self._pending = None

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise ValueError where ``load_state_dict`` could not take this state."""
        keys = set(self.state_dict())
        if set(state_dict) != keys:
            raise ValueError(f"`state_dict` has {sorted(state_dict)}, allowed: {sorted(keys)}")
        if tuple(state_dict["modalities"]) != self.modalities.names:
            raise ValueError(
                f"`state_dict` is of modalities {list(state_dict['modalities'])},"
                f" allowed: {list(self.modalities.names)}"
            )
        found = {name: list(t.shape) for name, t in state_dict["balancer"].items()}
        allowed = {name: list(t.shape) for name, t in state_tensors(self._state).items()}
        if found != allowed:
            raise ValueError(f"`state_dict` holds balancer state {found}, allowed: {allowed}")


def _learning_rate_is_zero(optimizer: Optimizer) -> bool:
    """Whether every learning rate is a host-known 0, so that the step changes nothing."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return all(
        rate.device.type == "cpu" and float(rate) == 0 if isinstance(rate, Tensor) else rate == 0
        for rate in rates
    )
