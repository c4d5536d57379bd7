"""Sums of squares of each group and, in the same launch, the weights that a rule finds from them.

One program adds up all groups side by side, since the rule needs them all: with a program a group
it would be a launch of its own.
"""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import sum_ranges
from modgrad.triton_kernels.group_sq_norms import launch_partial_sums
from modgrad.triton_kernels.rule_weights import constants
from modgrad.triton_kernels.rules import of_one_loss
from modgrad.triton_kernels.table import TWO_CHUNK_OPTIONS, ChunkTable, side_by_side

TILE = 4096  # partial sums a step, of all groups together: 8 a thread
TILE_OPTIONS = TWO_CHUNK_OPTIONS


@triton.jit(do_not_specialize=["num_groups"])
def _rule_of_norms_kernel(
    partial: tl.tensor,  # [all chunks]
    groups: tl.tensor,  # [G, 2]
    grad_scale: tl.tensor,  # [1]
    found_inf: tl.tensor,  # [1]
    out: tl.tensor,  # [G]
    weights: tl.tensor,  # [G]
    num_groups: tl.tensor,
    RULE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    IN_UPDATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The weights; outside updates the sums too, in one for gradients without the scale."""
    num = num_groups
    if IN_UPDATE:  # one that is skipped has no groups, and so nothing is written
        num = tl.where(tl.load(found_inf) == 0.0, num_groups, 0)
    g = tl.arange(0, ROWS)
    sums = sum_ranges(partial, groups, num, ROWS, BLOCK)
    if IN_UPDATE:
        scale = tl.load(grad_scale).to(tl.float64)
        sums /= scale * scale
    else:
        tl.store(out + g, sums, mask=g < num)
    found = of_one_loss(sums, g < num, RULE, FIRST, SECOND, ROWS)
    tl.store(weights + g, found.to(tl.float32), mask=g < num)


def launch_rule_of_norms(
    addresses: Tensor,
    table: ChunkTable,
    weights: Tensor,
    rule: str,
    parameters: Sequence[float] | None,
    sq_norms: Tensor | None = None,
    scale: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fills ``weights``, and ``sq_norms``; or, with grad_scale and found_inf, as in an update."""
    partial = launch_partial_sums(addresses, table)
    unused = partial, partial
    _rule_of_norms_kernel[(1,)](
        *(partial, table.groups, *(scale or unused), partial if sq_norms is None else sq_norms),
        *(weights, len(weights), *constants(rule, parameters)),
        *(scale is not None, *side_by_side(len(weights), TILE)),
        **TILE_OPTIONS,
    )
