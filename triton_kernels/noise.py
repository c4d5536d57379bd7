"""GE noise of modulate_: the spread of each tensor, then scaled gradients with noise added."""
# mypy: allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, store_chunk, sum_range, widen
from modgrad.triton_kernels.philox import normals
from modgrad.triton_kernels.table import CHUNK, OPTIONS, ChunkTable, read_row

BLOCK = 512  # partial sums a step: 2 million elements, more than most tensors have
# 8 elements a thread: Philox and Box-Muller take 70 registers with 16, and 42 with 8
NOISE_OPTIONS = {**OPTIONS, "num_warps": 16}


@triton.jit
def _modulate_spread_kernel(
    addresses: tl.tensor,  # [P]
    rows: tl.tensor,  # [chunks, 5]
    noise: tl.tensor,  # [G]
    sums: tl.tensor,  # [all chunks]
    squares: tl.tensor,  # [all chunks]
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Sums over a chunk of d = x - x[0] and of d^2, in float64; x[0] is the tensor's first element.

    The shift keeps the subtraction in the variance from cancelling. A group without noise is not
    read, and its sums stay unwritten.
    """
    tensor, first, count, group, slot = read_row(rows)
    if tl.load(noise + group, mask=group >= 0, other=0.0) != 0.0:
        start = tl.load(addresses + tensor).to(tl.pointer_type(DTYPE))
        shift = widen(tl.load(start), DTYPE).to(tl.float64)
        x = load_chunk(element(addresses, tensor, first, DTYPE), count, DTYPE, CHUNK)
        d = tl.where(tl.arange(0, CHUNK) < count, x.to(tl.float64) - shift, 0.0)
        tl.store(sums + slot, tl.sum(d, 0))
        tl.store(squares + slot, tl.sum(d * d, 0))


@triton.jit
def _modulate_deviation_kernel(
    sums: tl.tensor,  # [all chunks]
    squares: tl.tensor,  # [all chunks]
    tensors: tl.tensor,  # [P, 2]
    sizes: tl.tensor,  # [P]
    out: tl.tensor,  # [P]
    BLOCK: tl.constexpr,
) -> None:
    """std = sqrt((n sum d^2 - (sum d)^2) / (n (n - 1))), and 0 for a single element."""
    t = tl.program_id(0)
    n = tl.load(sizes + t).to(tl.float64)
    s = sum_range(sums, tensors, t, BLOCK)
    q = sum_range(squares, tensors, t, BLOCK)
    variance = (n * q - s * s) / (n * (n - 1.0))
    tl.store(out + t, tl.sqrt(tl.where((n < 2.0) | (variance < 0.0), 0.0, variance)))


@triton.jit
def _modulate_noise_kernel(
    addresses: tl.tensor,  # [P]
    rows: tl.tensor,  # [chunks, 5]
    weights: tl.tensor,  # [G]
    noise: tl.tensor,  # [G]
    deviations: tl.tensor,  # [P]
    seed: tl.tensor,  # [1]
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """x <- w x + a std z."""
    tensor, first, count, group, _ = read_row(rows)
    weight = tl.load(weights + group)
    amount = tl.load(noise + group)
    if (weight != 1.0) | (amount != 0.0):
        x = element(addresses, tensor, first, DTYPE)
        values = weight * load_chunk(x, count, DTYPE, CHUNK)
        if amount != 0.0:
            spread = (amount.to(tl.float64) * tl.load(deviations + tensor)).to(values.dtype)
            values += spread * normals(tl.load(seed), tensor, first, CHUNK)
        store_chunk(x, values, count, DTYPE, CHUNK)


def launch_deviations(table: ChunkTable, addresses: Tensor, noise: Tensor) -> Tensor:
    """Standard deviation of each tensor, float64 [P]; garbage where its group has no noise."""
    sums, squares = noise.new_empty((2, table.num_chunks), dtype=torch.float64).unbind()
    deviations = noise.new_empty(len(addresses), dtype=torch.float64)
    for kind, rows in table.launches:
        dtype = kind[0] if isinstance(kind, tuple) else kind
        _modulate_spread_kernel[(len(rows),)](
            addresses, rows, noise, sums, squares, dtype, CHUNK, **OPTIONS
        )
    _modulate_deviation_kernel[(len(deviations),)](
        sums, squares, table.tensors, table.sizes, deviations, BLOCK, **OPTIONS
    )
    return deviations


def launch_noise(
    table: ChunkTable, addresses: Tensor, weights: Tensor, noise: Tensor, seed: Tensor
) -> None:
    deviations = launch_deviations(table, addresses, noise)
    for dtype, rows in table.launches:
        _modulate_noise_kernel[(len(rows),)](
            addresses, rows, weights, noise, deviations, seed, dtype, CHUNK, **NOISE_OPTIONS
        )
