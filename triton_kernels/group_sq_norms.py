"""Sums of squares per group: one partial sum a chunk, then the chunks of each group in order."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, sum_range
from modgrad.triton_kernels.table import CHUNK, OPTIONS, address_table, chunk_table, read_row

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
    tensor, first, count, _, slot = read_row(rows)
    x = load_chunk(element(addresses, tensor, first, DTYPE), count, DTYPE, CHUNK).to(tl.float64)
    tl.store(partial + slot, tl.sum(x * x, 0))


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


def launch_group_sq_norms(
    tensors: Sequence[Tensor], group: Sequence[int], num_groups: int
) -> Tensor:
    table = chunk_table(tensors, group, num_groups)
    partial = tensors[0].new_empty(table.num_chunks, dtype=torch.float64)
    out = tensors[0].new_empty(num_groups, dtype=torch.float64)
    addresses = address_table(tensors)
    with torch.cuda.device_of(out):
        for dtype, rows in table.launches:
            _group_sq_norms_kernel[(len(rows),)](addresses, rows, partial, dtype, CHUNK, **OPTIONS)
        _group_sums_kernel[(num_groups,)](partial, table.groups, out, BLOCK, **OPTIONS)
    return out
