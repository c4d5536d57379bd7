"""Optimizer updates with the balancing weights folded in: modulation without a pass of its own.

One call is one of torch's optimizer groups. The state tensors are those of ``torch.optim``, so a
checkpoint of one is a checkpoint of the other. Shape letters: M groups of weights, P tensors.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from modgrad import checks, rules, update_lists
from modgrad.backends import native, select
from modgrad.ops import _REFUSALS, _is_native, _seed, _write_back
from modgrad.rules import Rule

Apply = Literal["gradient", "update"]


def _one(name: str, value: Tensor | None, device: torch.device) -> Tensor | None:
    """One float32 element on the device, as ``GradScaler`` hands them to fused optimizers."""
    if value is None or (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.numel() == 1
        and value.device == device
    ):
        return value
    kind = type(value).__name__
    found = (
        f"{value.dtype} {list(value.shape)} on {value.device}" if hasattr(value, "dtype") else kind
    )
    raise ValueError(f"`{name}` is {found}, allowed: one float32 element on {device}")


def _in_range(name: str, value: float, low: float = 0.0, high: float = float("inf")) -> None:
    if not low <= value < high:
        raise ValueError(f"`{name}` is {value}, allowed: [{low:g}, {high:g})")


def _options(
    lr: float | Tensor,
    weights: Tensor,
    num_params: int,
    *,
    maximize: bool,
    apply: Apply,
    noise: Tensor | None,
    seed: int | Tensor | None,
    stream: Sequence[int] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    sq_norms: Tensor | None,
    rule: Rule | None,
) -> dict[str, Any]:
    """The arguments in which both updates end, checked and as backends take them."""
    device, M = weights.device, len(weights)
    if apply not in ("gradient", "update"):
        raise ValueError(f"`apply` is {apply!r}, allowed: 'gradient', 'update'")
    lr_tensor = None
    if isinstance(lr, Tensor):
        lr_tensor = _one("lr", lr.detach().to(device, torch.float32), device)
    else:
        _in_range("lr", lr)
    if noise is not None:
        checks.vector("noise", noise, M, device)
        noise, seed = noise.detach().float().contiguous(), _seed(seed, device)
    elif seed is not None:
        raise ValueError("`seed` is given without `noise`")
    if stream is not None and len(stream) != num_params:
        raise ValueError(f"`stream` has {len(stream)} entries, allowed: {num_params}")
    if sq_norms is not None and (
        sq_norms.dtype != torch.float64
        or sq_norms.shape != (2, M)
        or sq_norms.device != device
        or not sq_norms.is_contiguous()
    ):
        found = f"{sq_norms.dtype} {list(sq_norms.shape)} on {sq_norms.device}"
        raise ValueError(
            f"`sq_norms` is {found}, allowed: contiguous torch.float64 [2, {M}] on {device}"
        )
    of_rule: dict[str, Any] = {}
    if rule is not None:
        kind = rules.check(rule)
        if kind.reads != "gram" or kind.compares_losses:
            raise ValueError(f"`rule` is {rule.name!r}, allowed: one of norms, 'equal_norms'")
        if weights.dtype != torch.float32 or not weights.is_contiguous():
            found = f"{weights.dtype} of stride {weights.stride()}"
            raise ValueError(f"`weights` is {found}, allowed with `rule`: contiguous torch.float32")
        of_rule = {"rule": rule.name, "parameters": rule.parameters}
    return {
        **of_rule,
        "maximize": maximize,
        "scale_update": apply == "update",
        "lr_tensor": lr_tensor,
        "grad_scale": _one("grad_scale", grad_scale, device),
        "found_inf": _one("found_inf", found_inf, device),
        "noise": noise,
        "seed": seed,
        "stream": stream,
        "sq_norms": sq_norms,
    }


def _update(
    op: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    steps: Sequence[Tensor] | None,
    group: Sequence[int],
    weights: Tensor,
    lr: float | Tensor,
    hyperparameters: Sequence[float | bool],
    backend: str | None,
    options: dict[str, Any],
) -> None:
    """Check, choose a backend, call its op; states are in the order of the op's arguments."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"`weights` is {type(weights).__name__}, allowed: a tensor")
    checks.vector("weights", weights, None, weights.device)
    options = _options(lr, weights, len(params), **options)
    weights = weights.detach().float().contiguous()
    rate = 0.0 if isinstance(lr, Tensor) else float(lr)
    counted = [] if steps is None else [steps]
    present = {name: values for name, values in states.items() if values}
    lists = [params, grads, *states.values()]
    changed: Sequence[Sequence[Tensor]] | None = None
    if _is_native(params, backend):
        with suppress(*_REFUSALS):  # around the op alone: what follows must not make it run twice
            getattr(native, op)(*lists, *counted, group, weights, rate, *hyperparameters, **options)
            changed = lists
    if changed is None:
        device = update_lists.check(params, grads, present, steps, group, len(weights))
        if weights.device != device:
            raise ValueError(f"`weights` is on {weights.device}, allowed: {device}")
        tight = update_lists.dense([params, grads, *present.values()])
        changed = tight + [[] for _ in range(len(states) - len(present))]
        chosen = getattr(select(device, backend), op)
        chosen(*changed, *counted, group, weights, rate, *hyperparameters, **options)
    if changed is not lists:
        for i, tensors in enumerate(lists):
            if i != 1:  # gradients are only read
                _write_back(tensors, changed[i])
    # Of what a graph can hold: to touch 1,000 tensors that left the cache takes 0.2 ms a list.
    torch.autograd.graph.increment_version(params)


@torch.no_grad()
def modulated_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    is_first_step: bool = False,
    apply: Apply = "gradient",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    stream: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    sq_norms: Tensor | None = None,
    rule: Rule | None = None,
    backend: str | None = None,
) -> None:
    """A step of ``torch.optim.SGD`` in which every gradient is scaled by its group's weight.

    ``x = w g + a std(g) z + weight_decay p``, ``b <- momentum b + (1 - dampening) x`` (x in the
    first step), ``p <- p - lr b``, or ``p - lr (x + momentum b)`` with ``nesterov``; w =
    weights[group], a = noise[group]. Reads g and p and b, writes p and b: the traffic of plain SGD.
    Computed in float32 (float64 for float64) and rounded once a tensor; gradients stay as they are.

    Args:
        params: P floating-point tensors on one device, changed in place.
        grads: P tensors like them.
        momentum_buffers: P tensors like them, or in float32, changed in place; none without
            momentum. Zeros before the first step: then ``is_first_step`` matters with dampening
            only, and a first step that ``found_inf`` skips is made up for exactly without it.
        group: P integers in [0, M), or -1 for a shared parameter: weight 1, no noise, no norm.
        weights: [M].
        lr: a number, or a tensor of one element that is read on the device.
        apply: "gradient": w multiplies the gradient, as in the papers. "update": w multiplies the
            learning rate of the group's parameters, and the gradient stays as it is.
        noise: [M], or None for none; with ``seed``, as in ``modulate_``.
        seed: an integer, or an int64 tensor of one element that is read on the device.
        stream: P numbers of noise, 0 to P - 1 by default. Calls that share a seed need others each.
        grad_scale: one float32 element by which gradients are divided first, as by ``GradScaler``.
        found_inf: one float32 element; unless it is 0 nothing is changed.
        sq_norms: float64 [2, M], overwritten: each group's sum of squares of the gradients (after
            grad_scale, before weights), and of the parameters before the update.
        rule: finds the weights from this call's gradients, such as ``EqualNorms().rule``: `weights`
            is float32 then, and overwritten with them.
        backend: its name; None takes the first that can run.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning,
    ICML 2013, as in ``torch.optim.SGD``; the weights as in ``modulate_``.
    """
    for name, value in (("momentum", momentum), ("weight_decay", weight_decay)):
        _in_range(name, value)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("`nesterov` is True, allowed with momentum above 0 and dampening 0")
    if bool(momentum_buffers) != (momentum != 0):
        raise ValueError(
            f"`momentum_buffers` has {len(momentum_buffers)} entries,"
            f" allowed with momentum {momentum}: {len(params) if momentum else 0}"
        )
    hyperparameters = (momentum, dampening, weight_decay, nesterov, is_first_step)
    options: dict[str, Any] = {
        "maximize": maximize,
        "apply": apply,
        "noise": noise,
        "seed": seed,
        "stream": stream,
    }
    options |= {
        "grad_scale": grad_scale,
        "found_inf": found_inf,
        "sq_norms": sq_norms,
        "rule": rule,
    }
    states = {"momentum_buffers": momentum_buffers}
    _update(
        *("modulated_sgd_", params, grads, states, None, group, weights, lr),
        *(hyperparameters, backend, options),
    )


def _adam(
    lists: tuple[Sequence[Tensor], ...],
    group: Sequence[int],
    weights: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    backend: str | None,
    options: dict[str, Any],
) -> None:
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
    for i, beta in enumerate(betas):
        _in_range(f"betas[{i}]", beta, high=1.0)
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        _in_range(name, value)
    states = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "max_exp_avg_sqs": max_exp_avg_sqs}
    _update(
        *("modulated_adam_", params, grads, states, steps, group, weights, lr),
        *((*betas, eps, weight_decay, decoupled), backend, options),
    )


@torch.no_grad()
def modulated_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_exp_avg_sqs: Sequence[Tensor] = (),
    maximize: bool = False,
    apply: Apply = "gradient",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    stream: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    sq_norms: Tensor | None = None,
    rule: Rule | None = None,
    backend: str | None = None,
) -> None:
    """A step of ``torch.optim.Adam`` in which every gradient is scaled by its group's weight.

    ``x = w g + a std(g) z + weight_decay p``, ``m <- m + (1 - beta1) (x - m)``,
    ``v <- beta2 v + (1 - beta2) x^2``, ``p <- p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) +
    eps)``; w = weights[group], a = noise[group]. Reads p, g, m, v and writes p, m, v: the traffic
    of plain Adam. Computed in float32 (float64 for float64) and rounded once a tensor; gradients
    stay as they are. Adam divides a constant scale of the gradient out again: a weight that hardly
    changes acts through ``apply="update"`` only.

    Args:
        params: P floating-point tensors on one device, changed in place.
        grads: P tensors like them.
        exp_avgs: m, P tensors like them, or in float32, changed in place.
        exp_avg_sqs: v, likewise.
        state_steps: t, P float32 tensors of one element; increased by 1.
        group: P integers in [0, M), or -1 for a shared parameter: weight 1, no noise, no norm.
        weights: [M].
        lr: a number, or a tensor of one element that is read on the device.
        max_exp_avg_sqs: the largest v so far, likewise, with amsgrad; none without.
        apply: "gradient": w multiplies the gradient, as in the papers. "update": w multiplies the
            learning rate of the group's parameters, and the gradient stays as it is.
        noise: [M], or None for none; with ``seed``, as in ``modulate_``.
        seed: an integer, or an int64 tensor of one element that is read on the device.
        stream: P numbers of noise, 0 to P - 1 by default. Calls that share a seed need others each.
        grad_scale: one float32 element by which gradients are divided first, as by ``GradScaler``.
        found_inf: one float32 element; unless it is 0 nothing is changed.
        sq_norms: float64 [2, M], overwritten: each group's sum of squares of the gradients (after
            grad_scale, before weights), and of the parameters before the update.
        rule: finds the weights from this call's gradients, such as ``EqualNorms().rule``: `weights`
            is float32 then, and overwritten with them.
        backend: its name; None takes the first that can run.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015; Reddi et al., On
    the Convergence of Adam and Beyond, ICLR 2018 (amsgrad); the weights as in ``modulate_``.
    """
    options: dict[str, Any] = {
        "maximize": maximize,
        "apply": apply,
        "noise": noise,
        "seed": seed,
        "stream": stream,
    }
    options |= {
        "grad_scale": grad_scale,
        "found_inf": found_inf,
        "sq_norms": sq_norms,
        "rule": rule,
    }
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps)
    _adam(lists, group, weights, lr, betas, eps, weight_decay, False, backend, options)


@torch.no_grad()
def modulated_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    max_exp_avg_sqs: Sequence[Tensor] = (),
    maximize: bool = False,
    apply: Apply = "gradient",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    stream: Sequence[int] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    sq_norms: Tensor | None = None,
    rule: Rule | None = None,
    backend: str | None = None,
) -> None:
    """A step of ``torch.optim.AdamW`` in which every gradient is scaled by its group's weight.

    As ``modulated_adam_``, which names the arguments, but with decoupled weight decay: x has no
    term with p, and ``p <- (1 - lr weight_decay) p`` comes before the update. With
    ``apply="update"`` the decay's learning rate is scaled too.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    options: dict[str, Any] = {
        "maximize": maximize,
        "apply": apply,
        "noise": noise,
        "seed": seed,
        "stream": stream,
    }
    options |= {
        "grad_scale": grad_scale,
        "found_inf": found_inf,
        "sq_norms": sq_norms,
        "rule": rule,
    }
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps)
    _adam(lists, group, weights, lr, betas, eps, weight_decay, True, backend, options)
