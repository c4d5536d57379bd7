"""Sums of squares per group: one partial sum a chunk, then the chunks of each group in order."""
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
    ChunkTable,
    address_table,
    chunk_table,
    read_row,
)

BLOCK = 4096  # partial sums a step: 16 million elements, so that a large group takes few steps


@triton.jit
def _group_sq_norms_kernel(
    addresses: tl.tensor,  # [P]
    rows: tl.tensor,  # [chunks, 5]
    partial: tl.tensor,  # [all chunks]
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """partial[c] = sum over chunk c of x^2, in float64, where no float32 overflows or vanishes."""
    tensor, first, count, group, slot = read_row(rows)
    if group >= 0:  # a shared parameter is in no sum
        x = load_chunk(element(addresses, tensor, first, DTYPE), count, DTYPE, CHUNK)
        wide = x.to(tl.float64)
        tl.store(partial + slot, tl.sum(wide * wide, 0))


@triton.jit
def _group_sums_kernel(
    partial: tl.tensor,  # [all chunks]
    groups: tl.tensor,  # [G, 2]
    out: tl.tensor,  # [G]
    BLOCK: tl.constexpr,
) -> None:
    """out[g] = sum over the chunks c of group g of partial[c]."""
    g = tl.program_id(0)
    tl.store(out + g, sum_range(partial, groups, g, BLOCK))


def launch_partial_sums(addresses: Tensor, table: ChunkTable) -> Tensor:
    """The sum of squares of each chunk, float64 [all chunks]; garbage where a tensor is shared."""
    partial = addresses.new_empty(table.num_chunks, dtype=torch.float64)
    for kind, rows in table.launches:
        dtype = kind[0] if isinstance(kind, tuple) else kind
        _group_sq_norms_kernel[(len(rows),)](addresses, rows, partial, dtype, CHUNK, **OPTIONS)
    return partial


def launch_group_sq_norms(
    tensors: Sequence[Tensor], group: Sequence[int], num_groups: int
) -> Tensor:
    table = chunk_table(tensors, group, num_groups)
    out = tensors[0].new_empty(num_groups, dtype=torch.float64)
    with torch.cuda.device_of(out):
        partial = launch_partial_sums(address_table(tensors), table)
        _group_sums_kernel[(num_groups,)](partial, table.groups, out, BLOCK, **OPTIONS)
    return out
