"""The step of SGD, Adam or AdamW with the weights folded in: modulation has no pass of its own."""

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from modgrad import updates
from modgrad.checks import FLOATS
from modgrad.distributed import is_sharded
from modgrad.modulator import Modulator
from modgrad.records import Pending

_UPDATES: dict[type, Callable[..., None]] = {
    SGD: updates.modulated_sgd_,
    Adam: updates.modulated_adam_,
    AdamW: updates.modulated_adamw_,
}


_OPTIONS = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "maximize")


def why_not(optimizer: Optimizer) -> str | None:
    """Why the step of an optimizer cannot be replaced, or None where it can."""
    kind = type(optimizer)
    if kind not in _UPDATES:
        return f"it is {kind.__name__}, not SGD, Adam or AdamW itself"
    for group in optimizer.param_groups:
        if group["differentiable"]:
            return "it is differentiable"
        if any(isinstance(beta, Tensor) for beta in group.get("betas", ())):
            return "its betas are tensors"
        if kind is not SGD and not group["fused"] and torch.get_default_dtype() != torch.float32:
            return f"it counts steps in {torch.get_default_dtype()}"
        on_device = kind is SGD or group["fused"] or group["capturable"]
        for p in group["params"]:
            if is_sharded(p) or p.dtype not in FLOATS:
                return f"a parameter is {'a DTensor' if is_sharded(p) else p.dtype}"
            if p.is_cuda and not on_device:
                return (
                    "it counts steps on the host; on a GPU, give it fused=True or capturable=True"
                )
    return None


class _Part(NamedTuple):
    """Parameters of one optimizer group that have a gradient, and the same kind of state."""

    options: dict[str, Any]  # the optimizer's own group, which schedulers change
    places: list[int]  # of the parameters in it
    parameters: list[Tensor]
    states: dict[str, list[Tensor]]
    starts: bool  # momentum starts with this step
    owner: list[int]  # the modality, -1 for shared
    stream: list[int]  # of GE noise


class FusedStep:
    """Steps an optimizer on its own state tensors, by ``modulated_sgd_`` and its like.

    Lists of parameters and states are kept between steps: to gather them takes torch half the time
    of a step of small tensors. They are gathered again where parameters, the presence of gradients,
    the optimizer's state or the kind of its options change.
    """

    def __init__(self, optimizer: Optimizer, modulator: Modulator, apply: updates.Apply) -> None:
        self._optimizer, self._modulator, self._apply = optimizer, modulator, apply
        self._parts: list[_Part] = []
        self._seen: list[tuple[Any, ...]] = []
        self._state: Mapping[Any, Any] | None = None

        def step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            return self._step(closure)

        # Hooks and the profiler's label come as with the optimizer's own step.
        self._hooked = Optimizer.profile_hook_step(step)

    def __call__(self, closure: Callable[[], Any] | None = None) -> Any:
        """Decide, then update. A closure is run first; its value is returned."""
        arguments = () if closure is None else (closure,)
        with self._modulator.folded():
            return self._hooked(self._optimizer, *arguments)

    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pending = self._modulator.decide()
        groups = self._optimizer.param_groups
        grads = [[p.grad for p in group["params"]] for group in groups]
        seen = [
            ([g is None for g in held], bool(group.get("momentum")), group.get("amsgrad"))
            for group, held in zip(groups, grads, strict=True)
        ]
        if not self._is_current(seen):
            self._gather(grads)
            self._seen = seen
        of_group = {id(group): held for group, held in zip(groups, grads, strict=True)}
        for i, part in enumerate(self._parts):
            held = of_group[id(part.options)]
            self._update(part, [held[j] for j in part.places], pending)
            if part.starts:
                self._parts[i] = part._replace(starts=False)
        if pending is not None:
            self._modulator.commit(pending)
        return loss

    def _is_current(self, seen: list[tuple[Any, ...]]) -> bool:
        return (
            self._state is self._optimizer.state
            and seen == self._seen
            and all(
                len(part.options["params"]) > part.places[-1]
                and all(map(is_, part.parameters, _at(part.options["params"], part.places)))
                for part in self._parts
            )
        )

    def _gather(self, grads: list[list[Tensor | None]]) -> None:
        """Make the state of new parameters, as the optimizer does, and list it."""
        self._parts, self._state = [], self._optimizer.state
        assignment = self._modulator.assignment
        owner = dict(zip(map(id, assignment.parameters), assignment.group, strict=True))
        present = [p for p in assignment.parameters if p.grad is not None]
        stream = {id(p): i for i, p in enumerate(present)}
        for group, held in zip(self._optimizer.param_groups, grads, strict=True):
            for starts, index, states in _states(self._optimizer, group, held):
                parameters = _at(group["params"], index)
                self._parts.append(
                    _Part(
                        group,
                        index,
                        parameters,
                        states,
                        starts,
                        [owner.get(id(p), -1) for p in parameters],
                        [stream.get(id(p), 0) for p in parameters],
                    )
                )

    def _update(self, part: _Part, grads: list[Tensor], pending: Pending | None) -> None:
        group, own = part.options, pending is not None and not pending.applied
        if own:
            assert pending is not None
            weights = pending.decision.weights[:, 0]
            noise, owner, seed = pending.decision.modulation.noise, part.owner, pending.seed
        else:  # gradients are as they should be
            weights = torch.ones(1, device=grads[0].device)
            noise, owner, seed = None, [-1] * len(grads), None
        options: dict[str, Any] = {name: group[name] for name in _OPTIONS if name in group}
        if type(self._optimizer) is SGD:
            options["is_first_step"] = part.starts
        _UPDATES[type(self._optimizer)](
            part.parameters,
            grads,
            group=owner,
            weights=weights,
            apply=self._apply,
            noise=noise,
            seed=seed,
            stream=None if noise is None else part.stream,
            grad_scale=getattr(self._optimizer, "grad_scale", None),
            found_inf=getattr(self._optimizer, "found_inf", None),
            backend=self._modulator.backend,
            **part.states,
            **options,
        )


def _at(values: list[Tensor], index: list[int]) -> list[Tensor]:
    return values if len(values) == len(index) else [values[i] for i in index]


def _states(
    optimizer: Optimizer, group: dict[str, Any], grads: list[Tensor | None]
) -> list[tuple[bool, list[int], dict[str, list[Tensor]]]]:
    """Of the parameters with a gradient: whether momentum starts, where they are, their state."""
    index = [i for i, grad in enumerate(grads) if grad is not None]
    if not index:
        return []
    parameters = _at(group["params"], index)
    if type(optimizer) is SGD:
        return _momentum(optimizer, group, index, parameters)
    lists: list[list[Tensor]] = [[] for _ in range(6)]
    optimizer._init_group(group, *lists)  # type: ignore[attr-defined]
    _, _, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "state_steps": steps}
    return [(False, index, {**states, "max_exp_avg_sqs": max_exp_avg_sqs})]


def _momentum(
    optimizer: Optimizer, group: dict[str, Any], index: list[int], parameters: list[Tensor]
) -> list[tuple[bool, list[int], dict[str, list[Tensor]]]]:
    if group["momentum"] == 0:
        return [(False, index, {"momentum_buffers": []})]
    out = []
    for starts in (True, False):
        chosen = [
            (i, p)
            for i, p in zip(index, parameters, strict=True)
            if (optimizer.state[p].get("momentum_buffer") is None) == starts
        ]
        out.append((starts, chosen))
    parts = []
    for starts, chosen in out:
        if not chosen:
            continue
        for _, p in chosen:
            if starts:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [optimizer.state[p]["momentum_buffer"] for _, p in chosen]
        parts.append((starts, [i for i, _ in chosen], {"momentum_buffers": buffers}))
    return parts
