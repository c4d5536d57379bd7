"""Mean probability of the true class: one program a row of logits, then the mean in fixed order."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, sum_range, widen
from modgrad.triton_kernels.table import BLOCK, ROW_OPTIONS, address_table, row_table


@triton.jit
def _modality_scores_kernel(
    addresses: tl.tensor,  # [M]
    rows: tl.tensor,  # [modalities of DTYPE, 3]: modality, classes, slot of its first row
    targets: tl.tensor,  # [B]
    out: tl.tensor,  # [M * B]
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """p = softmax(logits[m, b])[targets[b]], NaN for a target outside [0, C)."""
    WIDE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    b = tl.program_id(0).to(tl.int64)
    row = rows + tl.program_id(1) * 3
    num_classes = tl.load(row + 1)
    x = element(addresses, tl.load(row), b * num_classes, DTYPE)
    largest = tl.full((), float("-inf"), WIDE)
    shift = tl.zeros((), WIDE)
    total = tl.zeros((), WIDE)
    first = tl.zeros((), tl.int64)
    while first < num_classes:
        block = x + first * (DTYPE.primitive_bitwidth // 8)
        v = load_chunk(block, num_classes - first, DTYPE, BLOCK, float("-inf"))
        higher = tl.maximum(largest, tl.max(v, 0))
        # while every class so far is masked (-inf) a shift by the largest gives inf - inf
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(v - shift), 0)
        largest = higher
        first += BLOCK
    target = tl.load(targets + b)
    is_class = (target >= 0) & (target < num_classes)
    chosen = tl.load(x.to(tl.pointer_type(DTYPE)) + target, mask=is_class, other=float("nan"))
    p = tl.exp(widen(chosen, DTYPE) - shift) / total
    tl.store(out + tl.load(row + 2) + b, p.to(tl.float64))


@triton.jit
def _modality_means_kernel(
    p: tl.tensor,  # [M * B]
    modalities: tl.tensor,  # [M, 2]: first and end slot
    out: tl.tensor,  # [M]
    BLOCK: tl.constexpr,
) -> None:
    """out[m] = 1/B sum_b p[m, b]."""
    m = tl.program_id(0)
    num_rows = tl.load(modalities + 1) - tl.load(modalities)
    mean = sum_range(p, modalities, m, BLOCK) / num_rows
    tl.store(out + m, mean.to(tl.float32))


def launch_modality_scores(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    B, M = len(targets), len(logits)
    launches, modalities = row_table(logits, range(M))
    p = targets.new_empty(M * B, dtype=torch.float64)
    out = targets.new_empty(M, dtype=torch.float32)
    addresses = address_table(logits)
    with torch.cuda.device_of(out):
        for dtype, rows in launches:
            _modality_scores_kernel[(B, len(rows))](
                addresses, rows, targets, p, dtype, BLOCK, **ROW_OPTIONS
            )
        _modality_means_kernel[(M,)](p, modalities, out, BLOCK, **ROW_OPTIONS)
    return out
