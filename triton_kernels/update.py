"""What the fused updates share: one table of addresses and numbers, how a weight acts, norms.

The table is int64: NUMBERS float64 numbers by their bits, then P entries each of the normals'
streams, the groups, and the addresses of parameters, gradients, states and step counters.
"""
# mypy: allow-untyped-decorators

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.device import element, load_chunk, sum_range
from modgrad.triton_kernels.noise import launch_deviations
from modgrad.triton_kernels.philox import normals
from modgrad.triton_kernels.rule_of_norms import launch_rule_of_norms
from modgrad.triton_kernels.table import (
    OPTIONS,
    TWO_CHUNK_OPTIONS,
    ChunkTable,
    chunk_table,
    upload,
)

BLOCK = 4096  # partial sums a step, as in group_sq_norms
UPDATE_OPTIONS = TWO_CHUNK_OPTIONS  # 8 elements a thread of each of up to five chunks

# Places in the table. Those with which a kernel takes the place of a tensor that is not given are
# even: 16 bytes, as tensors are aligned.
LR: tl.constexpr = tl.constexpr(0)
SIGN: tl.constexpr = tl.constexpr(1)
GRAD_SCALE: tl.constexpr = tl.constexpr(2)
SCALE_UPDATE: tl.constexpr = tl.constexpr(3)
FOUND_INF: tl.constexpr = tl.constexpr(4)
OWN: tl.constexpr = tl.constexpr(5)  # the first of an optimizer's own numbers
NUMBERS: tl.constexpr = tl.constexpr(14)


@triton.jit
def number(table: tl.tensor, index: tl.constexpr) -> tl.tensor:
    """One of the table's numbers, float64."""
    return tl.load(table + index).to(tl.float64, bitcast=True)


@triton.jit
def entry(table: tl.tensor, num_tensors: tl.tensor, k: tl.constexpr) -> tl.tensor:
    """Where the P entries of list k begin: 0 streams, 1 groups, 2 parameters, 3 gradients, ..."""
    return table + NUMBERS + k * num_tensors


@triton.jit
def weighted(
    table: tl.tensor,
    tensor: tl.tensor,
    group: tl.tensor,
    weights: tl.tensor,  # [G]
    lr: tl.tensor,  # [1]
    grad_scale: tl.tensor,  # [1]
    noise: tl.tensor,  # [G]
    deviations: tl.tensor,  # [P]
    NOISE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What the gradient, the normals and the learning rate are multiplied by, float64."""
    weight = tl.load(weights + group, mask=group >= 0, other=1.0).to(tl.float64)
    rate = tl.load(lr).to(tl.float64)
    scale = number(table, SIGN) / tl.load(grad_scale).to(tl.float64)
    on_update = number(table, SCALE_UPDATE) != 0.0
    amount = scale * 0.0
    if NOISE:
        a = tl.load(noise + group, mask=group >= 0, other=0.0)
        amount = scale * a * tl.load(deviations + tensor, mask=a != 0.0, other=0.0)
    return (
        scale * tl.where(on_update, 1.0, weight),
        amount,
        rate * tl.where(on_update, weight, 1.0),
    )


@triton.jit
def seen(
    table: tl.tensor,
    num_tensors: tl.tensor,
    seed: tl.tensor,  # [1]
    tensor: tl.tensor,
    first: tl.tensor,
    grad: tl.tensor,  # [CHUNK]
    weight: tl.tensor,
    amount: tl.tensor,
    NOISE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """The gradient that the optimizer sees: weight g + amount z."""
    x = weight.to(grad.dtype) * grad
    if NOISE:  # noqa: SIM102 - known to the compiler, unlike the other
        if amount != 0.0:
            stream = tl.load(entry(table, num_tensors, 0) + tensor)
            x += amount.to(grad.dtype) * normals(tl.load(seed), stream, first, CHUNK)
    return x


@triton.jit
def load_list(
    table: tl.tensor,
    num_tensors: tl.tensor,
    k: tl.constexpr,
    tensor: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The address of a chunk of list k's tensor, and the chunk."""
    address = element(entry(table, num_tensors, k), tensor, first, DTYPE)
    return address, load_chunk(address, count, DTYPE, CHUNK)


@triton.jit
def store_squares(
    partial: tl.tensor,  # [2, all chunks]
    num_chunks: tl.tensor,
    slot: tl.tensor,
    grad: tl.tensor,
    param: tl.tensor,
) -> None:
    """A chunk's sums of squares, in float64."""
    g = grad.to(tl.float64)
    p = param.to(tl.float64)
    tl.store(partial + slot, tl.sum(g * g, 0))
    tl.store(partial + num_chunks + slot, tl.sum(p * p, 0))


@triton.jit(do_not_specialize=["num_chunks"])
def _update_norms_kernel(
    partial: tl.tensor,  # [2, all chunks]
    groups: tl.tensor,  # [G, 2]
    grad_scale: tl.tensor,  # [1]
    found_inf: tl.tensor,  # [1]
    out: tl.tensor,  # [2, G]
    num_chunks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Sums over the chunks of a group; gradients as they are without the scale."""
    if tl.load(found_inf) == 0.0:
        g = tl.program_id(0)
        scale = tl.load(grad_scale).to(tl.float64)
        tl.store(out + g, sum_range(partial, groups, g, BLOCK) / (scale * scale))
        sums = sum_range(partial + num_chunks, groups, g, BLOCK)
        tl.store(out + tl.num_programs(0) + g, sums)


class Update(NamedTuple):
    """The tensors of a launch that both optimizers' kernels take."""

    table: Tensor
    chunks: ChunkTable
    num_tensors: int
    weights: Tensor
    lr: Tensor
    grad_scale: Tensor
    found_inf: Tensor
    noise: Tensor
    deviations: Tensor
    seed: Tensor
    partial: Tensor
    is_noisy: bool
    sq_norms: Tensor | None

    @property
    def scalars(self) -> tuple[Tensor, ...]:
        """What ``weighted`` takes."""
        return self.weights, self.lr, self.grad_scale, self.found_inf, self.noise, self.deviations

    def launch_norms(self) -> None:
        if self.sq_norms is not None:
            _update_norms_kernel[(self.sq_norms.shape[1],)](
                self.partial,
                self.chunks.groups,
                self.grad_scale,
                self.found_inf,
                self.sq_norms,
                self.chunks.num_chunks,
                BLOCK,
                **OPTIONS,
            )


def prepare(
    lists: Sequence[Sequence[Tensor]],  # parameters, gradients, states, steps
    states: Sequence[Tensor],
    group: Sequence[int],
    weights: Tensor,
    lr: float,
    numbers: Sequence[float],  # the optimizer's own
    maximize: bool,
    scale_update: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    stream: Sequence[int] | None,
    sq_norms: Tensor | None,
    rule: str | None,
    parameters: Sequence[float] | None,
) -> Update:
    """One upload of all that is new in a step; then what the update needs to know of all gradients.

    That is their spread with noise, and with a rule the weights, which it overwrites.
    """
    params, P, weights = lists[0], len(lists[0]), weights.contiguous()
    fixed = [lr, -1.0 if maximize else 1.0, 1.0, float(scale_update), 0.0, *numbers]
    head = np.zeros(NUMBERS.value)
    head[: len(fixed)] = fixed
    pointers = [t.data_ptr() for tensors in lists for t in tensors]
    rest = [*(range(P) if stream is None else stream), *group, *pointers]
    values = np.concatenate([head.view(np.int64), np.array(rest, dtype=np.int64)])
    table = upload(values, params[0].device)
    chunks = chunk_table(params, group, len(weights), states if states else params)
    absent = table.view(torch.float64)
    lr_tensor = absent[LR.value :] if lr_tensor is None else lr_tensor
    grad_scale = absent[GRAD_SCALE.value :] if grad_scale is None else grad_scale
    found_inf = absent[FOUND_INF.value :] if found_inf is None else found_inf
    deviations, is_noisy = absent, noise is not None and seed is not None
    gradients = table[NUMBERS.value + 3 * P :][:P]
    if noise is not None:
        noise = noise.contiguous()
        deviations = launch_deviations(chunks, gradients, noise)
    if rule is not None:
        scale = grad_scale, found_inf
        launch_rule_of_norms(gradients, chunks, weights, rule, parameters, scale=scale)
    partial = absent
    if sq_norms is not None:
        partial = weights.new_empty((2, chunks.num_chunks), dtype=torch.float64)
    return Update(
        table,
        chunks,
        P,
        weights,
        lr_tensor,
        grad_scale,
        found_inf,
        weights if noise is None else noise,
        deviations,
        table if seed is None else seed,
        partial,
        is_noisy,
        sq_norms,
    )
