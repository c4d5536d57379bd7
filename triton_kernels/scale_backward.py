"""Gradients of the features, each scaled by its modality's weight into a new tensor."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, store_chunk
from modgrad.triton_kernels.table import (
    CHUNK,
    OPTIONS,
    address_table,
    chunk_table,
    read_row,
)


@triton.jit
def _scale_backward_kernel(
    sources: tl.tensor,  # [M]
    targets: tl.tensor,  # [M]
    rows: tl.tensor,  # [chunks, 5]
    weights: tl.tensor,  # [M]
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """out[m] = weights[m] * grads[m]."""
    m, first, count, _, _ = read_row(rows)
    x = element(sources, m, first, DTYPE)
    scaled = tl.load(weights + m) * load_chunk(x, count, DTYPE, CHUNK)
    store_chunk(element(targets, m, first, DTYPE), scaled, count, DTYPE, CHUNK)


def launch_scale_backward(grads: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    M, weights = len(grads), weights.contiguous()
    out = [torch.empty_like(grad) for grad in grads]
    table = chunk_table(grads, range(M), M)
    sources, targets = address_table([*grads, *out]).split(M)
    with torch.cuda.device_of(weights):
        for dtype, rows in table.launches:
            _scale_backward_kernel[(len(rows),)](
                sources, targets, rows, weights, dtype, CHUNK, **OPTIONS
            )
    return out
