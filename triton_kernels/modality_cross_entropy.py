"""Cross entropy and score: one program a row of logits, then the means in fixed order."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, widen
from modgrad.triton_kernels.rule_weights import constants
from modgrad.triton_kernels.rules import of_one_loss
from modgrad.triton_kernels.table import (
    BLOCK,
    ROW_OPTIONS,
    TWO_CHUNK_OPTIONS,
    address_table,
    row_table,
    side_by_side,
)
from modgrad.triton_kernels.targets import counts, peak_mass, probability, spread_mass

TILE = 2048  # losses a step, of all modalities together, and as many scores: 4 of each a thread
TILE_OPTIONS = TWO_CHUNK_OPTIONS


@triton.jit(do_not_specialize=["ignore_index"])
def _cross_entropy_rows_kernel(
    addresses: tl.tensor,  # [M]
    rows: tl.tensor,  # [modalities of DTYPE, 3]: modality, classes, slot of its first row
    targets: tl.tensor,  # [B], or [B, C]
    class_weights: tl.tensor,  # [C]
    losses: tl.tensor,  # [M * B]
    scores: tl.tensor,  # [M * B]
    lse: tl.tensor,  # [M * B]
    mass: tl.tensor,  # [B + 1]
    ignore_index: tl.tensor,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHING: tl.constexpr,
) -> None:
    """Each row's mass lse - sum_c q_c x_c, sum_c t_c p_c, lse and mass; NaN outside [0, C)."""
    WIDE: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    SIZE: tl.constexpr = DTYPE.primitive_bitwidth // 8
    b = tl.program_id(0).to(tl.int64)
    row = rows + tl.program_id(1) * 3
    m = tl.load(row)
    num_classes = tl.load(row + 1)
    slot = tl.load(row + 2) + b
    row_lse = tl.zeros((), tl.float64)
    row_mass = tl.zeros((), tl.float64)
    dot = tl.zeros((), tl.float64)
    score = tl.zeros((), tl.float64)
    if counts(targets, b, ignore_index, SOFT):
        x = element(addresses, m, b * num_classes, DTYPE)
        largest = tl.full((), float("-inf"), WIDE)
        shift = tl.zeros((), WIDE)
        total = tl.zeros((), WIDE)
        first = tl.zeros((), tl.int64)
        while first < num_classes:
            v = load_chunk(x + first * SIZE, num_classes - first, DTYPE, BLOCK, float("-inf"))
            higher = tl.maximum(largest, tl.max(v, 0))
            # while every class so far is masked (-inf) a shift by the largest gives inf - inf
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(largest - shift) + tl.sum(tl.exp(v - shift), 0)
            largest = higher
            first += BLOCK
        # NaN where the largest is infinite
        row_lse = largest.to(tl.float64) + tl.log(total.to(tl.float64))
        row_lse += (largest - largest).to(tl.float64)
        if SOFT or SMOOTHING > 0:
            first = tl.zeros((), tl.int64)
            while first < num_classes:
                c = first + tl.arange(0, BLOCK)
                v = load_chunk(x + first * SIZE, num_classes - first, DTYPE, BLOCK, 0.0)
                q = spread_mass(
                    targets, class_weights, b, c, num_classes, WIDE, SOFT, WEIGHTED, SMOOTHING
                ).to(tl.float64)
                dot += tl.sum(tl.where(q == 0, 0.0, q * v.to(tl.float64)), 0)
                row_mass += tl.sum(q, 0)
                if SOFT:
                    t = probability(targets, b, c, num_classes, WIDE)
                    score += tl.sum((t * (tl.exp(v - shift) / total)).to(tl.float64), 0)
                first += BLOCK
        if not SOFT:
            true_class, peak = peak_mass(
                targets, class_weights, b, num_classes, SOFT, WEIGHTED, SMOOTHING
            )
            is_class = (true_class >= 0) & (true_class < num_classes)
            x_true = tl.load(
                x.to(tl.pointer_type(DTYPE)) + true_class, mask=is_class, other=float("nan")
            )
            v_true = widen(x_true, DTYPE)
            dot += tl.where(peak == 0, 0.0, peak * v_true.to(tl.float64))
            row_mass += peak
            score = (tl.exp(v_true - shift) / total).to(tl.float64)
    tl.store(losses + slot, row_mass * row_lse - dot)
    tl.store(scores + slot, score)
    tl.store(lse + slot, row_lse)
    if m == 0:
        tl.store(mass + b, row_mass)


@triton.jit(do_not_specialize=["num_modalities", "num_rows", "num_joint", "ignore_index"])
def _cross_entropy_means_kernel(
    row_losses: tl.tensor,  # [M * B]
    row_scores: tl.tensor,  # [M * B]
    targets: tl.tensor,  # [B], or [B, C]
    class_weights: tl.tensor,  # [C]
    losses: tl.tensor,  # [M]
    scores: tl.tensor,  # [M]
    mass: tl.tensor,  # [B + 1]
    weights: tl.tensor,  # [M], with a rule
    num_modalities: tl.tensor,
    num_rows: tl.tensor,
    num_joint: tl.tensor,
    num_classes: tl.tensor,
    ignore_index: tl.tensor,
    RULE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr,
) -> None:
    """losses[m] = sum_b row_losses / sum_b w, scores[m] the mean over samples that count; weights.

    One program, whatever M is: the samples' weights are added up once, and a rule needs all scores.
    """
    m = tl.arange(0, ROWS)
    is_modality = m < num_modalities
    row = m.to(tl.int64)[:, None] * num_rows
    loss = tl.zeros((ROWS, BLOCK), tl.float64)
    score = tl.zeros((ROWS, BLOCK), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    first = tl.zeros((), tl.int64)
    while first < num_rows:
        b = first + tl.arange(0, BLOCK)
        kept = b < num_rows
        there = is_modality[:, None] & kept[None, :]
        loss += tl.load(row_losses + row + b[None, :], mask=there, other=0.0)
        score += tl.load(row_scores + row + b[None, :], mask=there, other=0.0)
        weight = tl.full((BLOCK,), 1.0, tl.float64)
        if not SOFT:
            y = tl.load(targets + b, mask=kept, other=0)
            kept = kept & (y != ignore_index)
            if WEIGHTED:
                is_class = (y >= 0) & (y < num_classes)
                weight = tl.load(class_weights + y, mask=is_class, other=float("nan"))
                weight = weight.to(tl.float64)
        total += tl.where(kept, weight, 0.0)
        count += tl.where(kept, 1.0, 0.0)
        first += BLOCK
    total_weight = tl.sum(total, 0)
    tl.store(mass + num_rows, total_weight)
    mean = tl.sum(loss, 1) / total_weight
    tl.store(losses + m, mean.to(losses.dtype.element_ty), mask=is_modality)
    mean_score = (tl.sum(score, 1) / tl.sum(count, 0)).to(tl.float32)
    tl.store(scores + m, mean_score, mask=is_modality)
    if RULE is not None:
        takes_part = is_modality & (m >= num_joint)
        found = of_one_loss(mean_score.to(tl.float64), takes_part, RULE, FIRST, SECOND, ROWS)
        tl.store(weights + m, found.to(tl.float32), mask=is_modality)


def launch_modality_cross_entropy(
    logits: Sequence[Tensor],
    targets: Tensor,
    class_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    rule: str | None = None,
    parameters: Sequence[float] | None = None,
    num_joint: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, M, new = len(targets), len(logits), logits[0].new_empty
    wide = any(x.dtype == torch.float64 for x in logits)
    losses = new(M, dtype=torch.float64 if wide else torch.float32)
    scores = new(M, dtype=torch.float32)
    weights = new(0 if rule is None else M, dtype=torch.float32)
    lse, mass = new(M, B, dtype=torch.float64), new(B + 1, dtype=torch.float64)
    row_losses, row_scores = new(2, M * B, dtype=torch.float64).unbind()
    table = row_table(logits, range(M))
    addresses = address_table(logits)
    weighted = class_weights is not None
    w = class_weights if class_weights is not None else mass  # never read
    kind = targets.is_floating_point(), weighted
    with torch.cuda.device_of(mass):
        for dtype, rows in table.launches:
            _cross_entropy_rows_kernel[(B, len(rows))](
                addresses,
                rows,
                targets,
                w,
                row_losses,
                row_scores,
                lse,
                mass,
                ignore_index,
                dtype,
                BLOCK,
                *kind,
                label_smoothing,
                **ROW_OPTIONS,
            )
        _cross_entropy_means_kernel[(1,)](
            *(row_losses, row_scores, targets, w, losses, scores, mass, weights),
            *(M, B, num_joint, logits[0].shape[1], ignore_index),
            *(*constants(rule, parameters), *side_by_side(M, TILE), *kind),
            **TILE_OPTIONS,
        )
    return losses, scores, lse, mass, weights
