"""Gradients scaled in place by their group's weight, with GE noise where a group asks for it."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, store_chunk
from modgrad.triton_kernels.noise import launch_noise
from modgrad.triton_kernels.table import (
    CHUNK,
    OPTIONS,
    ChunkTable,
    address_table,
    chunk_table,
    read_row,
)


@triton.jit
def _modulate_kernel(
    addresses: tl.tensor,  # [P]
    rows: tl.tensor,  # [chunks, 5]
    weights: tl.tensor,  # [G]
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """x <- w x."""
    tensor, first, count, group, _ = read_row(rows)
    weight = tl.load(weights + group)
    if weight != 1.0:  # the modalities that lag keep weight 1: nothing to read or write
        x = element(addresses, tensor, first, DTYPE)
        scaled = weight * load_chunk(x, count, DTYPE, CHUNK)
        store_chunk(x, scaled, count, DTYPE, CHUNK)


def launch_scaled(addresses: Tensor, table: ChunkTable, weights: Tensor) -> None:
    for dtype, rows in table.launches:
        _modulate_kernel[(len(rows),)](addresses, rows, weights, dtype, CHUNK, **OPTIONS)


def launch_modulate_(
    grads: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    weights = weights.contiguous()
    table = chunk_table(grads, group, len(weights))
    addresses = address_table(grads)
    with torch.cuda.device_of(weights):
        if noise is not None and seed is not None:
            launch_noise(table, addresses, weights, noise.contiguous(), seed)
        else:
            launch_scaled(addresses, table, weights)
