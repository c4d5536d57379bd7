"""Autograd functions on top of the ops."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from modgrad import checks, ops

_Name = TypeVar("_Name")


class _ScaleBackward(torch.autograd.Function):
    """Identity whose gradient is scaled; ``weights`` is read when backward comes by, not before."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, backend: str | None, *features: Tensor
    ) -> tuple[Tensor, ...]:
        # Not save_for_backward: it would refuse weights that were filled since.
        ctx.weights, ctx.backend = weights, backend
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_scale(ctx.weights, ctx.backend, grads)


class _Scale(torch.autograd.Function):
    """Gradients times weights, itself differentiable, for gradient penalties and the like."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, backend: str | None, *grads: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.weights, ctx.backend = weights, backend
        ctx.set_materialize_grads(False)
        return tuple(ops.scaled(grads, weights, backend=backend))

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_scale(ctx.weights, ctx.backend, grads)  # type: ignore[attr-defined]


def _scale(
    weights: Tensor, backend: str | None, grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Each gradient times its weight; a feature that got no gradient stays without one."""
    present = [m for m, grad in enumerate(grads) if grad is not None]
    if not present:
        return list(grads)
    values = [grad for grad in grads if grad is not None]
    chosen = weights if len(present) == len(grads) else torch.stack([weights[m] for m in present])
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        scaled = _Scale.apply(chosen, backend, *values)  # type: ignore[no-untyped-call]
    else:
        scaled = ops.scaled(values, chosen, backend=backend)
    out: list[Tensor | None] = [None] * len(grads)
    for m, grad in zip(present, scaled, strict=True):
        out[m] = grad
    return out


@overload
def scale_backward(
    features: Mapping[_Name, Tensor], weights: Tensor, *, backend: str | None = None
) -> dict[_Name, Tensor]: ...
@overload
def scale_backward(
    features: Sequence[Tensor], weights: Tensor, *, backend: str | None = None
) -> tuple[Tensor, ...]: ...
def scale_backward(
    features: Mapping[_Name, Tensor] | Sequence[Tensor],
    weights: Tensor,
    *,
    backend: str | None = None,
) -> dict[_Name, Tensor] | tuple[Tensor, ...]:
    """The features unchanged; in backward, the gradient of feature m is scaled by ``weights[m]``.

    Backward is linear, so this scales every gradient of an encoder that is reached only through its
    feature, at a cost of O(B D) whatever the encoder's size. The weights are read when backward
    reaches them: they may be filled in place between forward and backward.

    Args:
        features: M floating-point tensors of any shape, as a mapping or a sequence.
        weights: [M], on the same device, in the order of ``features``.
        backend: its name; None takes the first that can run.

    Returns:
        The features, without a copy: a dict for a mapping, else a tuple.
    """
    values = list(features.values()) if isinstance(features, Mapping) else list(features)
    device = checks.tensors("features", values)
    checks.vector("weights", weights, len(values), device)
    out: tuple[Tensor, ...] = _ScaleBackward.apply(weights, backend, *values)  # type: ignore[no-untyped-call]
    return dict(zip(features, out, strict=True)) if isinstance(features, Mapping) else out
