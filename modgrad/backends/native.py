"""The C++ and CUDA extension. The dispatcher of torch picks CPU or CUDA by the tensors' device."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from modgrad.backends.fake import register
from modgrad.backends.retained import handed_over

register("native")
_ops = torch.ops.modgrad_native


def _load(module: str) -> str | None:
    """Import an extension module, which registers its kernels; the reason where that fails."""
    try:
        import_module(module)
    except ImportError as error:
        return f"{module} did not import: {error}"
    return None


_REASONS: dict[str, str | None] = {
    "cpu": _load("modgrad._C"),
    # _C_cuda needs symbols of libtorch_cuda, which only a CUDA build of torch brings
    "cuda": _load("modgrad._C_cuda") if torch.version.cuda else "torch is built without CUDA",
}


def unusable(device: torch.device) -> str | None:
    return _REASONS.get(device.type, f"there are no {device.type} kernels")


def group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    sums: Tensor = _ops.group_sq_norms(tensors, group, num_groups)
    return sums


def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    _ops.modulate_(grads, group, weights, noise, seed)


def modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    scores: Tensor = _ops.modality_scores(logits, targets)
    return scores


def group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    gram: Tensor = _ops.group_gram(grads, tensor, loss, group, num_groups, num_losses)
    return gram


def combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    _ops.combine_(out, grads, tensor, loss, group, weights)


def scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    scaled: list[Tensor] = _ops.scale_backward(grads, weights)
    return scaled


def rule_weights(
    statistic: Tensor,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _ops.rule_weights(statistic, rule, parameters, losses, states)
    return out


def balance_(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = _ops.balance_(*args)
    return out


def modality_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
    num_joint: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = class_weights, ignore_index, label_smoothing, rule, parameters, num_joint
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _ops.modality_cross_entropy(
        logits, targets, *options
    )
    return out


def modality_cross_entropy_backward(
    logits: Sequence[Tensor],
    loss: Sequence[int],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    lse: Tensor,
    mass: Tensor,
    grad_losses: Tensor,
    weights: Tensor | None,
) -> list[Tensor]:
    options = targets, class_weights, ignore_index, label_smoothing
    grads: list[Tensor] = _ops.modality_cross_entropy_backward(
        logits, loss, *options, lse, mass, grad_losses, weights
    )
    return grads


def modulated_sgd_(*args: Any, **options: Any) -> None:
    op, args, _kept = handed_over("modulated_sgd_", args)
    getattr(_ops, op)(*args, **options)


def modulated_adam_(*args: Any, **options: Any) -> None:
    op, args, _kept = handed_over("modulated_adam_", args)
    getattr(_ops, op)(*args, **options)
