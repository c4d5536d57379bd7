"""Optimizer updates with the balancing weights folded in: modulation without a pass of its own.

One call is one of torch's optimizer groups. The state tensors are those of ``torch.optim``, so a
checkpoint of one is a checkpoint of the other. Shape letters: M groups of weights, P tensors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from modgrad import checks, update_lists, update_options
from modgrad.backends import native, select
from modgrad.calls import REFUSALS, check_refusal, is_native, write_back
from modgrad.update_options import UpdateOptions, in_range


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
    options: UpdateOptions,
) -> None:
    """Check, choose a backend, call its op; states are in the order of the op's arguments."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"`weights` is {type(weights).__name__}, allowed: a tensor")
    checks.vector("weights", weights, None, weights.device)
    ending = update_options.checked(lr, weights, len(params), **options)
    weights = weights.detach().float().contiguous()
    rate = 0.0 if isinstance(lr, Tensor) else float(lr)
    counted = [] if steps is None else [steps]
    present = {name: values for name, values in states.items() if values}
    lists = [params, grads, *states.values()]
    changed: Sequence[Sequence[Tensor]] | None = None
    if is_native(params, backend):
        try:  # around the op alone: what follows must not make it run twice
            getattr(native, op)(*lists, *counted, group, weights, rate, *hyperparameters, **ending)
            changed = lists
        except REFUSALS as error:
            check_refusal(error)
    if changed is None:
        device = update_lists.check(params, grads, present, steps, group, len(weights))
        if weights.device != device:
            raise ValueError(f"`weights` is on {weights.device}, allowed: {device}")
        tight = update_lists.dense([params, grads, *present.values()])
        changed = tight + [[] for _ in range(len(states) - len(present))]
        chosen = getattr(select(device, backend), op)
        chosen(*changed, *counted, group, weights, rate, *hyperparameters, **ending)
    if changed is not lists:
        for i, tensors in enumerate(lists):
            if i != 1:  # gradients are only read
                write_back(tensors, changed[i])
    # Of what a graph can hold: to touch 1,000 tensors that left the cache takes 0.2 ms a list.
    torch.autograd.graph.increment_version(list(params))


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
    is_first_step: bool = False,
    backend: str | None = None,
    **options: Unpack[UpdateOptions],
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
        in_range(name, value)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("`nesterov` is True, allowed with momentum above 0 and dampening 0")
    if bool(momentum_buffers) != (momentum != 0):
        raise ValueError(
            f"`momentum_buffers` has {len(momentum_buffers)} entries,"
            f" allowed with momentum {momentum}: {len(params) if momentum else 0}"
        )
    hyperparameters = (momentum, dampening, weight_decay, nesterov, is_first_step)
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
    options: UpdateOptions,
) -> None:
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
    for i, beta in enumerate(betas):
        in_range(f"betas[{i}]", beta, high=1.0)
    for name, value in (("eps", eps), ("weight_decay", weight_decay)):
        in_range(name, value)
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
    backend: str | None = None,
    **options: Unpack[UpdateOptions],
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
    backend: str | None = None,
    **options: Unpack[UpdateOptions],
) -> None:
    """A step of ``torch.optim.AdamW`` in which every gradient is scaled by its group's weight.

    As ``modulated_adam_``, which names the arguments, but with decoupled weight decay: x has no
    term with p, and ``p <- (1 - lr weight_decay) p`` comes before the update. With
    ``apply="update"`` the decay's learning rate is scaled too.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    lists = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps)
    _adam(lists, group, weights, lr, betas, eps, weight_decay, True, backend, options)
