"""Weighted sums of the gradients of K losses: one program a chunk of the output."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, store_chunk
from modgrad.triton_kernels.table import (
    CHUNK,
    TWO_CHUNK_OPTIONS,
    ChunkTable,
    address_grid,
    chunk_table,
    read_row,
)


@triton.jit(do_not_specialize=["num_losses"])  # a loss more compiles nothing anew
def _combine_kernel(
    addresses: tl.tensor,  # [P, K + 1]: the gradients, 0 where one is missing, and the output
    rows: tl.tensor,  # [chunks, 5]
    weights: tl.tensor,  # [G, K]
    num_losses: tl.tensor,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """out = sum_k w_k g_k, added in the order of losses and rounded once."""
    WIDE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    tensor, first, count, group, _ = read_row(rows)
    grads = addresses + tensor * (num_losses + 1)
    total = tl.zeros((CHUNK,), WIDE)
    k = tl.zeros((), tl.int64)
    while k < num_losses:
        if tl.load(grads + k) != 0:
            weight = tl.load(weights + group * num_losses + k)
            total += weight * load_chunk(element(grads, k, first, DTYPE), count, DTYPE, CHUNK)
        k += 1
    store_chunk(element(grads, num_losses, first, DTYPE), total, count, DTYPE, CHUNK)


def launch_combined(addresses: Tensor, table: ChunkTable, weights: Tensor) -> None:
    with torch.cuda.device_of(weights):
        for dtype, rows in table.launches:
            _combine_kernel[(len(rows),)](
                addresses, rows, weights, weights.shape[1], dtype, CHUNK, **TWO_CHUNK_OPTIONS
            )


def combine_table(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    num_losses: int,
) -> Tensor:
    """int64 [P, K + 1]: where the gradients of each tensor lie, and the output."""
    P, K = len(out), num_losses
    row, column = [*tensor, *range(P)], [*loss, *([K] * P)]
    addresses: Tensor = address_grid([*grads, *out], row, column, P, K + 1)
    return addresses


def launch_combine_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    weights: Tensor,
) -> None:
    M, K = weights.shape
    addresses = combine_table(out, grads, tensor, loss, K)
    launch_combined(addresses, chunk_table(out, group, M), weights.contiguous())
