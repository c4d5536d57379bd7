"""Inner products per group: one partial sum a chunk and pair, then the chunks of a group in order.

A pair is two losses k <= j of K, numbered along the rows of the upper triangle.
"""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, sum_range
from modgrad.triton_kernels.table import (
    CHUNK,
    OPTIONS,
    TWO_CHUNK_OPTIONS,
    ChunkTable,
    address_grid,
    chunk_table,
    read_row,
)

BLOCK = 4096  # partial sums a step: 16 million elements, so that a large group takes few steps


@triton.jit
def pair_number(k: tl.tensor, j: tl.tensor, num_losses: tl.tensor) -> tl.tensor:
    """The place of (k, j) in (0, 0), (0, 1), .. (0, K - 1), (1, 1), .. (K - 1, K - 1)."""
    return k * (2 * num_losses - k - 1) // 2 + j


# none specialized: a loss or a chunk more compiles nothing anew
@triton.jit(do_not_specialize=["columns", "num_losses", "num_chunks"])
def _group_gram_kernel(
    addresses: tl.tensor,  # [P, columns], K gradients first, 0 where one is missing
    rows: tl.tensor,  # [chunks, 5]
    partial: tl.tensor,  # [pairs, all chunks], zeros
    columns: tl.tensor,
    num_losses: tl.tensor,
    num_chunks: tl.tensor,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """partial[(k, j), c] = sum over chunk c of g_k g_j, in float64."""
    tensor, first, count, _, slot = read_row(rows)
    grads = addresses + tensor * columns
    k = tl.zeros((), tl.int64)
    while k < num_losses:
        if tl.load(grads + k) != 0:
            x = load_chunk(element(grads, k, first, DTYPE), count, DTYPE, CHUNK).to(tl.float64)
            place = partial + pair_number(k, k, num_losses) * num_chunks + slot
            tl.store(place, tl.sum(x * x, 0))
            j = k + 1
            while j < num_losses:
                place += num_chunks
                if tl.load(grads + j) != 0:
                    y = load_chunk(element(grads, j, first, DTYPE), count, DTYPE, CHUNK)
                    tl.store(place, tl.sum(x * y.to(tl.float64), 0))
                j += 1
        k += 1


@triton.jit(do_not_specialize=["num_losses", "num_chunks"])
def _group_gram_sums_kernel(
    partial: tl.tensor,  # [pairs, all chunks]
    groups: tl.tensor,  # [G, 2]: first and end chunk
    out: tl.tensor,  # [G, K, K]
    num_losses: tl.tensor,
    num_chunks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """out[g, k, j] = out[g, j, k] = sum over the chunks c of group g of partial[(k, j), c]."""
    g = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64)
    j = tl.program_id(2).to(tl.int64)
    if k <= j:
        place = partial + pair_number(k, j, num_losses) * num_chunks
        total = sum_range(place, groups, g, BLOCK)
        gram = out + g * num_losses * num_losses
        tl.store(gram + k * num_losses + j, total)
        tl.store(gram + j * num_losses + k, total)


def launch_gram(addresses: Tensor, table: ChunkTable, num_losses: int) -> Tensor:
    """float64 [G, K, K] from a row of ``addresses`` a tensor, the K gradients' first."""
    K, num_groups = num_losses, len(table.groups)
    partial = addresses.new_zeros(K * (K + 1) // 2, table.num_chunks, dtype=torch.float64)
    out = addresses.new_empty(num_groups, K, K, dtype=torch.float64)
    with torch.cuda.device_of(out):
        for dtype, rows in table.launches:
            _group_gram_kernel[(len(rows),)](
                *(addresses, rows, partial, addresses.shape[1], K, table.num_chunks),
                *(dtype, CHUNK),
                **TWO_CHUNK_OPTIONS,
            )
        _group_gram_sums_kernel[(num_groups, K, K)](
            partial, table.groups, out, K, table.num_chunks, BLOCK, **OPTIONS
        )
    return out


def launch_group_gram(
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
) -> Tensor:
    # a tensor that a loss reaches, with one of its gradients: all have its size and dtype
    reached = dict(zip(tensor, grads, strict=True))
    place = {t: p for p, t in enumerate(reached)}
    table = chunk_table(list(reached.values()), [group[t] for t in reached], num_groups)
    addresses = address_grid(grads, [place[t] for t in tensor], loss, len(reached), num_losses)
    return launch_gram(addresses, table, num_losses)
