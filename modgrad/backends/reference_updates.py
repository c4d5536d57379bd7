"""The fused optimizer updates in plain PyTorch: their definition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad import rules
from modgrad.backends.elements import wide, with_noise
from modgrad.backends.layout import flat


def _store(tensor: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """Write what was computed, rounded once; keep the old where the step is skipped."""
    old, new = flat(tensor), value.to(tensor.dtype)
    old.copy_(new if found_inf is None else torch.where(found_inf.reshape(()) != 0, old, new))


def _weight(weights: Tensor, g: int) -> Tensor:
    return weights[g] if g >= 0 else weights.new_ones(())


def _gradients(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    maximize: bool,
    scale_update: bool,
    grad_scale: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: Sequence[int] | None,
) -> list[Tensor]:
    """The gradients that the optimizer sees: flat, in the dtype of computation."""
    used = []
    for i, (grad, g) in enumerate(zip(grads, group, strict=True)):
        x = flat(grad).to(wide(grad.dtype))
        if grad_scale is not None:
            x = x / grad_scale.reshape(()).to(x.dtype)
        scaled = x if scale_update else x * _weight(weights, g).to(x.dtype)
        if noise is not None and seed is not None and g >= 0:
            scaled = with_noise(scaled, x, noise[g], seed, i if stream is None else stream[i])
        used.append(-scaled if maximize else scaled)
    return used


def _rate(
    lr: float, lr_tensor: Tensor | None, weights: Tensor, g: int, scale_update: bool
) -> Tensor:
    """The learning rate of one parameter, float64 []."""
    if lr_tensor is None:
        rate = weights.new_full((), lr, dtype=torch.float64)
    else:
        rate = lr_tensor.double().reshape(())
    return rate * _weight(weights, g).double() if scale_update else rate


def _measure(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    sq_norms: Tensor | None,
    rule: str | None,
    parameters: Sequence[float] | None,
) -> None:
    """Sums of squares per group, of unscaled gradients and of parameters before the update; and
    the weights that a rule finds from the gradients'."""
    if sq_norms is None and rule is None:
        return
    sums = weights.new_zeros(2, len(weights), dtype=torch.float64)
    for param, grad, g in zip(params, grads, group, strict=True):
        if g >= 0:
            x, p = flat(grad).double(), flat(param).double()
            x = x if grad_scale is None else x / grad_scale.reshape(()).double()
            sums[0, g] += torch.dot(x, x)
            sums[1, g] += torch.dot(p, p)
    if sq_norms is not None:
        _store(sq_norms, sums.flatten(), found_inf)
    if rule is not None:
        found, _ = rules.weights(rules.Rule(rule, tuple(parameters or ())), sums[0, :, None, None])
        _store(weights, found[:, 0], found_inf)


def modulated_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    is_first_step: bool,
    maximize: bool,
    scale_update: bool = False,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    stream: Sequence[int] | None = None,
    sq_norms: Tensor | None = None,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
) -> None:
    _measure(params, grads, group, weights, grad_scale, found_inf, sq_norms, rule, parameters)
    used = _gradients(
        grads, group, weights, maximize, scale_update, grad_scale, noise, seed, stream
    )
    for i, (param, x) in enumerate(zip(params, used, strict=True)):
        p = flat(param).to(x.dtype)
        if weight_decay != 0:
            x = x + weight_decay * p
        if momentum_buffers:
            b = x
            if not is_first_step:
                b = momentum * flat(momentum_buffers[i]).to(x.dtype) + (1 - dampening) * x
            _store(momentum_buffers[i], b, found_inf)
            x = x + momentum * b if nesterov else b
        rate = _rate(lr, lr_tensor, weights, group[i], scale_update).to(x.dtype)
        _store(param, p - rate * x, found_inf)


def modulated_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    scale_update: bool = False,
    lr_tensor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
    stream: Sequence[int] | None = None,
    sq_norms: Tensor | None = None,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
) -> None:
    _measure(params, grads, group, weights, grad_scale, found_inf, sq_norms, rule, parameters)
    used = _gradients(
        grads, group, weights, maximize, scale_update, grad_scale, noise, seed, stream
    )
    for i, (param, x) in enumerate(zip(params, used, strict=True)):
        p, m, v = (flat(t[i]).to(x.dtype) for t in (params, exp_avgs, exp_avg_sqs))
        rate = _rate(lr, lr_tensor, weights, group[i], scale_update)
        if weight_decay != 0 and decoupled:
            p = p * (1 - rate * weight_decay).to(x.dtype)
        elif weight_decay != 0:
            x = x + weight_decay * p
        m = m + (1 - beta1) * (x - m)
        v = beta2 * v + (1 - beta2) * x * x
        step = state_steps[i].reshape(()) + 1
        _store(state_steps[i], step, found_inf)
        _store(exp_avgs[i], m, found_inf)
        _store(exp_avg_sqs[i], v, found_inf)
        if max_exp_avg_sqs:
            v = torch.maximum(flat(max_exp_avg_sqs[i]).to(x.dtype), v)
            _store(max_exp_avg_sqs[i], v, found_inf)
        step_size = (rate / (1 - beta1 ** step.double())).to(x.dtype)
        correction = (1 - beta2 ** step.double()).sqrt().to(x.dtype)
        _store(param, p - step_size * (m / (v.sqrt() / correction + eps)), found_inf)
