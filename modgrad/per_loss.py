"""The gradients of several losses as backends take them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modgrad import checks
from modgrad.backends.layout import is_dense
from modgrad.calls import is_native


class PerLoss(NamedTuple):
    """The gradients of K losses as backends take them: one list, and whose each entry is."""

    grads: list[Tensor]
    tensor: list[int]
    loss: list[int]


def checked(
    grads_per_loss: Sequence[Sequence[Tensor | None]], strides: Sequence[Tensor | None]
) -> PerLoss:
    """Checked, and with the memory order of ``strides`` where that names a tensor."""
    if not grads_per_loss:
        raise ValueError("`grads_per_loss` is empty, allowed: one list a loss")
    P = len(grads_per_loss[0])
    out, first = PerLoss([], [], []), list(strides)
    for k, grads in enumerate(grads_per_loss):
        if len(grads) != P:
            raise ValueError(f"`grads_per_loss[{k}]` has {len(grads)} entries, allowed: {P}")
        for p, grad in enumerate(grads):
            if grad is None:
                continue
            like = first[p] = grad if first[p] is None else first[p]
            if like is not None and (grad.shape, grad.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"`grads_per_loss[{k}][{p}]` is {grad.dtype} {list(grad.shape)},"
                    f" allowed: {like.dtype} {list(like.shape)}"
                )
            out.grads.append(grad)
            out.tensor.append(p)
            out.loss.append(k)
    if not out.grads:
        raise ValueError("`grads_per_loss` holds no gradient, allowed: at least one")
    checks.tensors("grads_per_loss", out.grads)
    for i, p in enumerate(out.tensor):
        out.grads[i] = _with_strides(out.grads[i].detach(), first[p])
    return out


def flat(grads_per_loss: Sequence[Sequence[Tensor | None]]) -> PerLoss:
    """The lists as they are, for the native backend, which checks every gradient itself."""
    every = [
        (grad, p, k)
        for k, grads in enumerate(grads_per_loss)
        for p, grad in enumerate(grads)
        if grad is not None
    ]
    return PerLoss(*map(list, zip(*every, strict=True)))


def can_be_flat(
    grads_per_loss: Sequence[Sequence[Tensor | None]], num_tensors: int, backend: str | None
) -> bool:
    """Whether the native backend is to run, on lists of the right lengths that are not empty."""
    first = next((g for grads in grads_per_loss for g in grads if g is not None), None)
    lengths = {len(grads) for grads in grads_per_loss}
    return first is not None and lengths == {num_tensors} and is_native([first], backend)


def _with_strides(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The tensor, dense and in the memory order of ``like`` if that is dense."""
    if like is None or not is_dense(like):
        return tensor.contiguous()
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, requires_grad=False).copy_(tensor)
