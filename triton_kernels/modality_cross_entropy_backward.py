"""Gradients of all modalities' logits, each with its own coefficient: one program a row."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, store_chunk
from modgrad.triton_kernels.table import BLOCK, ROW_OPTIONS, address_table, row_table
from modgrad.triton_kernels.targets import counts, peak_mass, spread_mass


@triton.jit(do_not_specialize=["ignore_index", "num_rows"])
def _cross_entropy_backward_kernel(
    sources: tl.tensor,  # addresses of logits and gradients
    sinks: tl.tensor,
    rows: tl.tensor,  # [logits of DTYPE, 3]: place in the list, classes, its loss's first slot
    targets: tl.tensor,  # [B], or [B, C]
    class_weights: tl.tensor,  # [C]
    lse: tl.tensor,  # [M * B]
    mass: tl.tensor,  # [B + 1]
    grad_losses: tl.tensor,  # [M]
    weights: tl.tensor,  # [M]
    num_rows: tl.tensor,
    ignore_index: tl.tensor,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
    SCALED: tl.constexpr,  # whether there are weights
) -> None:
    """grad_losses[m] weights[m] / total (mass softmax(x) - q), 0 for a sample left out."""
    WIDE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    SIZE: tl.constexpr = DTYPE.primitive_bitwidth // 8
    b = tl.program_id(0).to(tl.int64)
    row = rows + tl.program_id(1) * 3
    i = tl.load(row)
    num_classes = tl.load(row + 1)
    slot = tl.load(row + 2)
    m = slot // num_rows
    x = element(sources, i, b * num_classes, DTYPE)
    out = element(sinks, i, b * num_classes, DTYPE)
    first = tl.zeros((), tl.int64)
    if counts(targets, b, ignore_index, SOFT):
        coefficient = tl.load(grad_losses + m).to(tl.float64) / tl.load(mass + num_rows)
        if SCALED:
            coefficient *= tl.load(weights + m).to(tl.float64)
        true_class, peak = peak_mass(
            targets, class_weights, b, num_classes, SOFT, WEIGHTED, SMOOTHING
        )
        row_lse = tl.load(lse + slot + b)
        high = row_lse.to(WIDE)
        low = (row_lse - high.to(tl.float64)).to(WIDE)
        factor = coefficient.to(WIDE)
        # a class outside of [0, C) has a NaN for its mass, and makes the row so
        scale = (coefficient * tl.load(mass + b) + (peak - peak)).to(WIDE)
        while first < num_classes:
            c = first + tl.arange(0, BLOCK)
            v = load_chunk(x + first * SIZE, num_classes - first, DTYPE, BLOCK, 0.0)
            q = tl.where(c == true_class, peak, 0.0).to(WIDE)
            if SOFT or SMOOTHING > 0:
                q += spread_mass(
                    targets, class_weights, b, c, num_classes, WIDE, SOFT, WEIGHTED, SMOOTHING
                )
            grad = scale * tl.exp((v - high) - low) - factor * q
            store_chunk(out + first * SIZE, grad, num_classes - first, DTYPE, BLOCK)
            first += BLOCK
    else:
        nothing = tl.zeros((BLOCK,), WIDE)
        while first < num_classes:
            store_chunk(out + first * SIZE, nothing, num_classes - first, DTYPE, BLOCK)
            first += BLOCK


def launch_modality_cross_entropy_backward(
    logits: Sequence[Tensor],
    loss: Sequence[int],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    lse: Tensor,
    mass: Tensor,
    grad_losses: Tensor,
    weights: Tensor | None,
) -> list[Tensor]:
    out = [torch.empty_like(x) for x in logits]
    table = row_table(logits, loss)
    sources, sinks = address_table([*logits, *out]).split(len(logits))
    with torch.cuda.device_of(mass):
        for dtype, rows in table.launches:
            _cross_entropy_backward_kernel[(len(targets), len(rows))](
                sources,
                sinks,
                rows,
                targets,
                mass if class_weights is None else class_weights,  # never read
                lse,
                mass,
                grad_losses,
                mass if weights is None else weights,  # never read
                len(targets),
                ignore_index,
                dtype,
                BLOCK,
                targets.is_floating_point(),
                class_weights is not None,
                label_smoothing,
                weights is not None,
                **ROW_OPTIONS,
            )
    return out
