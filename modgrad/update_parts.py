"""From torch's SGD, Adam and AdamW to the fused updates: which can be, and the lists they take."""

from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from modgrad import update_lists, update_options, updates
from modgrad.backends.retained import RetainedList
from modgrad.checks import FLOATS

Group = dict[str, Any]
Lists = dict[str, RetainedList]

_SGD = ("lr", "momentum", "dampening", "weight_decay", "maximize")
_ADAM = ("lr", "betas", "eps", "weight_decay", "maximize")


def why_not(optimizer: Optimizer) -> str | None:
    """Why no fused update does what the optimizer's step does; None where one does."""
    return why_not_options(optimizer) or why_not_parameters(optimizer)


def why_not_options(optimizer: Optimizer) -> str | None:
    """The reason that lies in its kind or its groups' options: quick, for every step."""
    if type(optimizer) not in (SGD, Adam, AdamW):
        return f"it is {type(optimizer).__name__}, allowed: SGD, Adam and AdamW, no subclass"
    return next(filter(None, map(_of_options, optimizer.param_groups)), None)


def why_not_parameters(optimizer: Optimizer) -> str | None:
    """The reason that lies in its parameters: the same until one is replaced."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if hasattr(p, "__tensor_flatten__"):  # DTensor, quantised weights
                return f"a parameter is a {type(p).__name__}"
            if p.dtype not in FLOATS:
                return f"a parameter has dtype {p.dtype}"
            if (reason := _of_counters(group, p)) is not None:
                return reason
    return None


def _of_counters(group: Group, p: Tensor) -> str | None:
    if p.device.type == "cpu" or "betas" not in group or group["fused"] or group["capturable"]:
        return None
    return f"it counts steps on the host, allowed on {p.device.type}: fused=True or capturable=True"


def _of_options(group: Group) -> str | None:
    if group["differentiable"]:
        return "it is differentiable"
    if any(isinstance(x, Tensor) for x in (group["weight_decay"], *group.get("betas", ()))):
        return "its betas or weight_decay are tensors"
    for name in ("lr", "weight_decay", "momentum", "eps"):
        value = group.get(name, 0.0)
        if not isinstance(value, Tensor) and not 0 <= value < inf:
            return f"its {name} is {value}, allowed: [0, inf)"
    if "betas" not in group:
        return (
            "it has nesterov with dampening" if group["nesterov"] and group["dampening"] else None
        )
    # model.cuda() moves the same parameters: the first tells
    return _of_counters(group, group["params"][0]) if group["params"] else None


class Part(NamedTuple):
    """Parameters of one group and device that have gradients, and the state that torch gives them.

    States are looked up in torch's dictionaries in every step: they may be moved to other devices
    and back, or put back from a copy. ``lists`` are those of the last step, until ``let_go``.
    """

    group: Group  # the optimizer's own, which schedulers change
    device: torch.device
    is_first_step: bool  # of momentum
    places: list[int]  # among all parameters
    parameters: RetainedList
    owner: list[int]  # the modality, -1 for shared
    stream: list[int]  # of GE noise
    keys: dict[str, str]  # of the states, by argument
    held: list[dict[str, Tensor]]
    lists: Lists

    def states(self) -> tuple[Lists, bool]:
        """The arguments that are lists of states, and whether one is new."""
        is_new = False
        for name, key in self.keys.items():
            last = self.lists.get(name)
            if last is None or not all(map(is_, map(itemgetter(key), self.held), last)):
                self.lists[name], is_new = RetainedList(map(itemgetter(key), self.held)), True
        return self.lists, is_new

    def check(self, grads: Sequence[Tensor | None], states_too: bool) -> None:
        """Raise ValueError where the update would, of what may change between steps."""
        lr = self.group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            update_options.one_element("lr", lr, lr.device)
        for i, beta in enumerate(self.group.get("betas", ())):
            update_options.in_range(f"betas[{i}]", beta, high=1.0)
        own = [grad for i in self.places if (grad := grads[i]) is not None]
        # 0.03 us a tensor, where a whole check takes 2
        of_parameters, of_grads = ({t.dtype for t in tensors} for tensors in (self.parameters, own))
        if states_too or of_parameters != of_grads or len(of_grads) > 1:
            states = dict(self.lists)
            steps = states.pop("state_steps", None)
            update_lists.check(self.parameters, own, states, steps, self.owner, len(self.owner))

    def update(self) -> tuple[Callable[..., None], Group]:
        """The fused update, and the arguments that are options of the group as they are now."""
        group = self.group
        if "betas" in group:
            decoupled = group["decoupled_weight_decay"]  # Adam takes it from an AdamW's checkpoint
            update = updates.modulated_adamw_ if decoupled else updates.modulated_adam_
            return update, {name: group[name] for name in _ADAM}
        options = {name: group[name] for name in _SGD}
        options["nesterov"] = group["nesterov"] and group["momentum"] != 0
        options["is_first_step"] = self.is_first_step
        return updates.modulated_sgd_, options if self.keys else {**options, "momentum_buffers": ()}


def kinds(optimizer: Optimizer) -> list[tuple[Any, ...]]:
    """What parts depend on besides parameters, gradients and states."""
    return [
        (id(g), len(g["params"]), g.get("momentum") == 0, g.get("amsgrad"))
        for g in optimizer.param_groups
    ]


def gather(
    optimizer: Optimizer, grads: Sequence[Tensor | None], owner: Sequence[int]
) -> list[Part]:
    """The parts, with new states made as the optimizer makes them.

    Args:
        grads, owner: of all parameters, the gradient and the modality, -1 for shared.
    """
    parts, start, numbers = [], 0, count()
    # as modulate_ numbers the gradients that it is given
    stream = [
        next(numbers) if g >= 0 and grad is not None else 0
        for g, grad in zip(owner, grads, strict=True)
    ]
    for group in optimizer.param_groups:
        found: dict[tuple[torch.device, bool], list[int]] = {}
        for i, p in enumerate(group["params"], start):
            if grads[i] is not None:
                found.setdefault((p.device, _starts(optimizer, group, p)), []).append(i)
        keys = _make_states(optimizer, group)
        for (device, is_first_step), places in found.items():
            parameters = RetainedList(group["params"][i - start] for i in places)
            parts.append(
                Part(
                    group,
                    device,
                    is_first_step,
                    places,
                    parameters,
                    [owner[i] for i in places],
                    [stream[i] for i in places],
                    keys,
                    [optimizer.state[p] for p in parameters] if keys else [],
                    {},
                )
            )
        start += len(group["params"])
    return parts


def _starts(optimizer: Optimizer, group: Group, p: Tensor) -> bool:
    """Whether the parameter's momentum starts with this step."""
    if group.get("momentum", 0) == 0:
        return False
    return p not in optimizer.state or optimizer.state[p].get("momentum_buffer") is None


def _make_states(optimizer: Optimizer, group: Group) -> dict[str, str]:
    """Make the states that are missing; returns their keys by argument."""
    present = [p for p in group["params"] if p.grad is not None]
    if "betas" not in group:
        for p in present:
            if _starts(optimizer, group, p):
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return {"momentum_buffers": "momentum_buffer"} if group["momentum"] != 0 else {}
    optimizer._init_group(group, *([] for _ in range(6)))  # type: ignore[attr-defined]
    for p in present:  # with a default dtype of float64, torch counts in it
        optimizer.state[p]["step"] = optimizer.state[p]["step"].to(p.device, torch.float32)
    keys = {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq", "state_steps": "step"}
    return keys | ({"max_exp_avg_sqs": "max_exp_avg_sq"} if group["amsgrad"] else {})
