"""Triton kernels: on CUDA tensors, and on CPU tensors under Triton's interpreter."""

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modgrad.backends.fake import register
from modgrad.backends.protocol import SCHEMAS

_INSTALLED = find_spec("triton") is not None
_TRUE = {"1", "true", "on", "y", "yes"}  # as triton reads its variables


def unusable(device: torch.device) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE
    if not _INSTALLED:
        return "triton is not installed"
    if device.type == "cuda" and interpreted:
        return "TRITON_INTERPRET is set, and the interpreter cannot read CUDA memory"
    if device.type == "cuda" or (device.type == "cpu" and interpreted):
        return None
    return "triton needs CUDA tensors, or TRITON_INTERPRET=1 on cpu"


def _launcher(op: str) -> Callable[..., Any]:
    """The launcher of an op, imported at its first call: importing modgrad imports no triton."""

    def launch(*args: Any, **options: Any) -> Any:
        module = import_module(f"modgrad.triton_kernels.{op}")
        with np.errstate(all="ignore"):  # the interpreter's numpy warns where inf and NaN arise
            return getattr(module, f"launch_{op}")(*args, **options)

    return launch


_LAUNCHERS = {op: _launcher(op) for op in SCHEMAS}
# torch.compile's CUDA graphs are cut around them: upload() refuses to be captured
register("triton", _LAUNCHERS, [torch.Tag.cudagraph_unsafe])


def _call(op: str, *args: Any, **options: Any) -> Any:
    """Launch; under torch.compile as one opaque op, whose schema says what it changes."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.modgrad_triton, op)(*args, **options)
    return _LAUNCHERS[op](*args, **options)


def group_sq_norms(tensors: Sequence[Tensor], group: Sequence[int], num_groups: int) -> Tensor:
    sums: Tensor = _call("group_sq_norms", tensors, group, num_groups)
    return sums


def modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    _call("modulate_", grads, group, weights, noise, seed)


def modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    scores: Tensor = _call("modality_scores", logits, targets)
    return scores


def scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    scaled: list[Tensor] = _call("scale_backward", grads, weights)
    return scaled


def group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    gram: Tensor = _call("group_gram", grads, tensor, loss, group, num_groups, num_losses)
    return gram


def combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    _call("combine_", out, grads, tensor, loss, group, weights)


def rule_weights(
    statistic: Tensor,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _call("rule_weights", statistic, rule, parameters, losses, states)
    return out


def balance_(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = _call("balance_", *args)
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
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _call(
        "modality_cross_entropy", logits, targets, *options
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
    grads: list[Tensor] = _call(
        "modality_cross_entropy_backward",
        logits,
        loss,
        *options,
        lse,
        mass,
        grad_losses,
        weights,
    )
    return grads


def modulated_sgd_(*args: Any, **options: Any) -> None:
    _call("modulated_sgd_", *args, **options)


def modulated_adam_(*args: Any, **options: Any) -> None:
    _call("modulated_adam_", *args, **options)
