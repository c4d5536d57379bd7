"""SGD with the weight of each parameter's group folded in: one program a chunk."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import store_chunk
from modgrad.triton_kernels.table import CHUNK, read_row
from modgrad.triton_kernels.update import (
    OWN,
    UPDATE_OPTIONS,
    load_list,
    number,
    prepare,
    seen,
    store_squares,
    weighted,
)


@triton.jit(do_not_specialize=["num_tensors", "num_chunks"])
def _modulated_sgd_kernel(
    table: tl.tensor,
    rows: tl.tensor,  # [chunks, 5]
    weights: tl.tensor,  # [G]
    lr: tl.tensor,  # [1]
    grad_scale: tl.tensor,  # [1]
    found_inf: tl.tensor,  # [1]
    noise: tl.tensor,  # [G]
    deviations: tl.tensor,  # [P]
    seed: tl.tensor,  # [1]
    partial: tl.tensor,  # [2, all chunks]
    num_tensors: tl.tensor,
    num_chunks: tl.tensor,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    IS_FIRST_STEP: tl.constexpr,
    NESTEROV: tl.constexpr,
    NOISE: tl.constexpr,
    MEASURED: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """b <- momentum b + (1 - dampening) x, p <- p - lr b; x is the gradient with decay."""
    if tl.load(found_inf) == 0.0:
        tensor, first, count, group, slot = read_row(rows)
        weight, amount, rate = weighted(
            table, tensor, group, weights, lr, grad_scale, noise, deviations, NOISE
        )
        _, g = load_list(table, num_tensors, 3, tensor, first, count, DTYPE, CHUNK)
        param, p = load_list(table, num_tensors, 2, tensor, first, count, DTYPE, CHUNK)
        if MEASURED:
            store_squares(partial, num_chunks, slot, g, p)
        x = seen(table, num_tensors, seed, tensor, first, g, weight, amount, NOISE, CHUNK)
        momentum = number(table, OWN).to(p.dtype)
        undamped = number(table, OWN + 1).to(p.dtype)
        decay = number(table, OWN + 2).to(p.dtype)
        x = tl.where(decay != 0.0, x + decay * p, x)
        if HAS_MOMENTUM:
            buffer, b = load_list(table, num_tensors, 4, tensor, first, count, STATE, CHUNK)
            b = x if IS_FIRST_STEP else momentum * b.to(p.dtype) + undamped * x
            store_chunk(buffer, b.to(tl.float32) if STATE.is_fp32() else b, count, STATE, CHUNK)
            x = x + momentum * b if NESTEROV else b
        store_chunk(param, p - rate.to(p.dtype) * x, count, DTYPE, CHUNK)


def launch_modulated_sgd_(
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
    lists = [params, grads, momentum_buffers]
    numbers = [momentum, 1 - dampening, weight_decay]
    with torch.cuda.device_of(weights):
        update = prepare(
            *(lists, momentum_buffers, group, weights, lr, numbers, maximize, scale_update),
            *(lr_tensor, grad_scale, found_inf, noise, seed, stream, sq_norms, rule, parameters),
        )
        for (dtype, state), rows in update.chunks.launches:
            _modulated_sgd_kernel[(len(rows),)](
                *(update.table, rows, *update.scalars, update.seed, update.partial),
                *(update.num_tensors, update.chunks.num_chunks, dtype, state),
                *(len(momentum_buffers) > 0, is_first_step, nesterov),
                *(update.is_noisy, sq_norms is not None, CHUNK),
                **UPDATE_OPTIONS,
            )
        update.launch_norms()
