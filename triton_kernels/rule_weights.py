"""From a statistic to weights by a rule: one program a row, or one in all where K is 1."""
# mypy: allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from modgrad.triton_kernels.rules import all_finite, gradnorm, mmpareto, of_one_loss, pcgrad
from modgrad.triton_kernels.table import ROW_OPTIONS


@triton.jit(do_not_specialize=["num_modalities", "num_losses"])
def _rule_weights_kernel(
    statistic: tl.tensor,  # [M], or [M, K, K]
    losses: tl.tensor,  # [K]
    w: tl.tensor,  # [K], the first state
    initial: tl.tensor,  # [K], the second
    weights: tl.tensor,  # [M, K]
    next_: tl.tensor,  # [2, K]
    num_modalities: tl.tensor,
    num_losses: tl.tensor,
    RULE: tl.constexpr,
    FIRST: tl.constexpr,  # its parameters
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,  # at least M and K
) -> None:
    """weights[m]; with m = 0 the next states too."""
    m = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    is_loss = lanes < num_losses
    if RULE == "ogm" or RULE == "equal_norms":
        is_modality = lanes < num_modalities
        values = tl.load(statistic + lanes, mask=is_modality, other=0.0).to(tl.float64)
        found = of_one_loss(values, is_modality, RULE, FIRST, SECOND, BLOCK)
        tl.store(weights + lanes, found.to(tl.float32), mask=is_modality)
    elif RULE == "gradnorm":
        row = tl.load(w + lanes, mask=is_loss, other=0.0)
        tl.store(weights + m * num_losses + lanes, row, mask=is_loss)
        if m == 0:
            stepped, first = gradnorm(
                statistic, losses, w, initial, num_modalities, num_losses, FIRST, SECOND, BLOCK
            )
            tl.store(next_ + lanes, stepped.to(tl.float32), mask=is_loss)
            tl.store(next_ + num_losses + lanes, first.to(tl.float32), mask=is_loss)
    else:
        gram = statistic + m * num_losses * num_losses
        if RULE == "mmpareto":
            row = mmpareto(gram, m, num_losses, FIRST, BLOCK)
        else:
            tl.static_assert(RULE == "pcgrad", "an unknown rule")
            row = pcgrad(gram, num_losses, BLOCK)
        places = gram + lanes[:, None] * num_losses + lanes[None, :]
        values = tl.load(places, mask=is_loss[:, None] & is_loss[None, :], other=0.0)
        row = tl.where(all_finite(tl.sum(values * 0.0, 0)), row, 1.0)
        tl.store(weights + m * num_losses + lanes, row.to(tl.float32), mask=is_loss)


def launch_rule_weights(
    statistic: Tensor,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    statistic = statistic.contiguous()
    M, K = len(statistic), 1 if statistic.dim() == 1 else statistic.shape[2]
    weights = statistic.new_empty(M, K, dtype=torch.float32)
    next_ = statistic.new_empty(len(states), K, dtype=torch.float32)
    reads = [weights] * 3 if losses is None else [losses, *states]  # or what is never read
    with torch.cuda.device_of(weights):
        _rule_weights_kernel[(M if K > 1 else 1,)](
            *(statistic, *reads, weights, next_, M, K),
            *constants(rule, parameters),
            triton.next_power_of_2(max(M, K)),
            **ROW_OPTIONS,
        )
    return weights, next_


def constants(
    rule: str | None, parameters: Sequence[float] | None
) -> tuple[str | None, float, float]:
    """A rule as kernels take it: with two parameters, 0 where it has none."""
    first, second = [*map(float, parameters or ()), 0.0, 0.0][:2]
    return rule, first, second
