"""The tensor lists of an optimizer update: checked, and dense in one memory order a parameter."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modgrad import checks
from modgrad.backends.layout import is_dense


def check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    steps: Sequence[Tensor] | None,
    group: Sequence[int],
    num_groups: int,
) -> torch.device:
    """Every list has an entry a parameter, and every entry is like it; returns their device.

    ``steps`` is None where the optimizer counts none.
    """
    device = checks.tensors("params", params)
    lists = {"grads": grads, **states} | ({} if steps is None else {"state_steps": steps})
    for name, values in {**lists, "group": group}.items():
        if len(values) != len(params):
            raise ValueError(f"`{name}` has {len(values)} entries, allowed: {len(params)}")
    for name, values in lists.items():
        if checks.tensors(name, values) != device:
            raise ValueError(f"`{name}` is on {values[0].device}, allowed: {device}")
    for i, g in enumerate(group):
        if not -1 <= g < num_groups:
            raise ValueError(f"`group[{i}]` is {g}, outside [-1, {num_groups})")
    for i, param in enumerate(params):
        _like("grads", i, grads[i], param, (param.dtype,))
        own = {values[i].dtype for values in states.values()}
        allowed = (param.dtype, torch.float32) if len(own) < 2 else (param.dtype,)
        for name, values in states.items():
            _like(name, i, values[i], param, allowed)
    for i, step in enumerate(steps or ()):
        if step.dtype != torch.float32 or step.numel() != 1:
            raise ValueError(
                f"`state_steps[{i}]` is {step.dtype} {list(step.shape)},"
                " allowed: torch.float32, one element"
            )
    return device


def _like(
    name: str, i: int, value: Tensor, param: Tensor, allowed: tuple[torch.dtype, ...]
) -> None:
    if value.shape != param.shape or value.dtype not in allowed:
        dtypes = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ValueError(
            f"`{name}[{i}]` is {value.dtype} {list(value.shape)},"
            f" allowed: {dtypes} {list(param.shape)}, as its parameter"
        )


def dense(lists: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The lists, the first of which sets each parameter's memory order, with copies where needed.

    A parameter with gaps or overlaps in memory is copied too.
    """
    params = [p.detach() if is_dense(p) else p.detach().contiguous() for p in lists[0]]
    return [
        params,
        *([_in_order(x, p) for x, p in zip(tensors, params, strict=True)] for tensors in lists[1:]),
    ]


def _in_order(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
