"""Adam and AdamW with the weight of each parameter's group folded in.

A program a tensor counts its step and computes what the step means; then one a chunk.
"""
# mypy: allow-untyped-decorators

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import store_chunk
from modgrad.triton_kernels.table import CHUNK, OPTIONS, read_row
from modgrad.triton_kernels.update import (
    OWN,
    UPDATE_OPTIONS,
    entry,
    load_list,
    number,
    prepare,
    seen,
    store_squares,
    weighted,
)

TENSOR_OPTIONS = {**OPTIONS, "num_warps": 1}
PER_TENSOR: tl.constexpr = tl.constexpr(5)


@triton.jit(do_not_specialize=["num_tensors"])
def _adam_tensors_kernel(
    table: tl.tensor,
    weights: tl.tensor,  # [G]
    lr: tl.tensor,  # [1]
    grad_scale: tl.tensor,  # [1]
    found_inf: tl.tensor,  # [1]
    noise: tl.tensor,  # [G]
    deviations: tl.tensor,  # [P]
    num_tensors: tl.tensor,
    out: tl.tensor,  # [P, PER_TENSOR]
    STEPS: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """Weight, amount of noise, step size, kept part of the parameter, 1 / root of the bias."""
    if tl.load(found_inf) == 0.0:
        tensor = tl.program_id(0)
        group = tl.load(entry(table, num_tensors, 1) + tensor)
        weight, amount, rate = weighted(
            table, tensor, group, weights, lr, grad_scale, noise, deviations, NOISE
        )
        counter = tl.load(entry(table, num_tensors, STEPS) + tensor).to(tl.pointer_type(tl.float32))
        step = tl.load(counter) + 1.0
        tl.store(counter, step)
        # beta^step = e^(step ln beta)
        bias1 = 1.0 - tl.exp(step.to(tl.float64) * number(table, OWN))
        bias2 = 1.0 - tl.exp(step.to(tl.float64) * number(table, OWN + 1))
        of_tensor = out + tensor * PER_TENSOR
        tl.store(of_tensor, weight)
        tl.store(of_tensor + 1, amount)
        tl.store(of_tensor + 2, rate / bias1)
        tl.store(of_tensor + 3, 1.0 - rate * number(table, OWN + 6))
        tl.store(of_tensor + 4, 1.0 / tl.sqrt(bias2))


@triton.jit
def root(x: tl.tensor) -> tl.tensor:
    """sqrt(x), rounded to nearest in float32 too."""
    return tl.sqrt(x) if x.dtype.is_fp64() else tl.sqrt_rn(x)


@triton.jit
def quotient(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x / y, rounded to nearest in float32 too."""
    return x / y if x.dtype.is_fp64() else tl.div_rn(x, y)


@triton.jit
def store_state(
    address: tl.tensor,
    values: tl.tensor,
    count: tl.tensor,
    STATE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """To a state, which may be of float32 beside a parameter of float64."""
    store_chunk(address, values.to(tl.float32) if STATE.is_fp32() else values, count, STATE, CHUNK)


@triton.jit(do_not_specialize=["num_tensors", "num_chunks"])
def _modulated_adam_kernel(
    table: tl.tensor,
    rows: tl.tensor,  # [chunks, 5]
    tensors: tl.tensor,  # [P, PER_TENSOR]
    found_inf: tl.tensor,  # [1]
    seed: tl.tensor,  # [1]
    partial: tl.tensor,  # [2, all chunks]
    num_tensors: tl.tensor,
    num_chunks: tl.tensor,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    NOISE: tl.constexpr,
    MEASURED: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """p <- p - step_size m / (sqrt(v) / sqrt(bias) + eps), after m and v took the gradient."""
    if tl.load(found_inf) == 0.0:
        tensor, first, count, _, slot = read_row(rows)
        of_tensor = tensors + tensor * PER_TENSOR
        _, g = load_list(table, num_tensors, 3, tensor, first, count, DTYPE, CHUNK)
        param, p = load_list(table, num_tensors, 2, tensor, first, count, DTYPE, CHUNK)
        first_moment, m = load_list(table, num_tensors, 4, tensor, first, count, STATE, CHUNK)
        second_moment, v = load_list(table, num_tensors, 5, tensor, first, count, STATE, CHUNK)
        if MEASURED:
            store_squares(partial, num_chunks, slot, g, p)
        weight, amount = tl.load(of_tensor), tl.load(of_tensor + 1)
        x = seen(table, num_tensors, seed, tensor, first, g, weight, amount, NOISE, CHUNK)
        m, v = m.to(p.dtype), v.to(p.dtype)
        decay = number(table, OWN + 5).to(p.dtype)
        x = tl.where(decay != 0.0, x + decay * p, x)
        m += number(table, OWN + 2).to(p.dtype) * (x - m)
        v = number(table, OWN + 4).to(p.dtype) * v + number(table, OWN + 3).to(p.dtype) * x * x
        store_state(first_moment, m, count, STATE, CHUNK)
        store_state(second_moment, v, count, STATE, CHUNK)
        if AMSGRAD:
            largest, old = load_list(table, num_tensors, 6, tensor, first, count, STATE, CHUNK)
            v = tl.maximum(old.to(p.dtype), v, propagate_nan=tl.PropagateNan.ALL)
            store_state(largest, v, count, STATE, CHUNK)
        eps = number(table, OWN + 7).to(p.dtype)
        step = quotient(m, root(v) * tl.load(of_tensor + 4).to(p.dtype) + eps)
        kept = tl.load(of_tensor + 3).to(p.dtype)
        new = p * kept - tl.load(of_tensor + 2).to(p.dtype) * step
        store_chunk(param, new, count, DTYPE, CHUNK)


def launch_modulated_adam_(
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
    lists = [params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps]
    amsgrad = len(max_exp_avg_sqs) > 0
    logs = [math.log(b) if b > 0 else -math.inf for b in (beta1, beta2)]
    decays = [0.0, weight_decay] if decoupled else [weight_decay, 0.0]
    numbers = [*logs, 1 - beta1, 1 - beta2, beta2, *decays, eps]
    with torch.cuda.device_of(weights):
        update = prepare(
            *(lists, exp_avgs, group, weights, lr, numbers, maximize, scale_update),
            *(lr_tensor, grad_scale, found_inf, noise, seed, stream, sq_norms, rule, parameters),
        )
        P = update.num_tensors
        tensors = weights.new_empty((P, PER_TENSOR.value), dtype=torch.float64)
        _adam_tensors_kernel[(P,)](
            *(update.table, *update.scalars, P, tensors, 7 if amsgrad else 6, update.is_noisy),
            **TENSOR_OPTIONS,
        )
        for (dtype, state), rows in update.chunks.launches:
            _modulated_adam_kernel[(len(rows),)](
                *(update.table, rows, tensors, update.found_inf, update.seed, update.partial),
                *(P, update.chunks.num_chunks, dtype, state, amsgrad),
                *(update.is_noisy, sq_norms is not None, CHUNK),
                **UPDATE_OPTIONS,
            )
        update.launch_norms()
