"""Gradients measured, weighed by a rule and scaled or combined: with one table of addresses.

Three launches with one loss, four with several. A single one, whose programs wait for each other,
needs all of them on the device at once: Triton does not promise that, and its interpreter runs them
one after the other, so that the first would wait for ever.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modgrad.triton_kernels.combine_ import combine_table, launch_combined
from modgrad.triton_kernels.group_gram import launch_gram
from modgrad.triton_kernels.modulate_ import launch_scaled
from modgrad.triton_kernels.rule_of_norms import launch_rule_of_norms
from modgrad.triton_kernels.rule_weights import launch_rule_weights
from modgrad.triton_kernels.table import address_table, chunk_table


def launch_balance_(
    out: Sequence[Tensor],
    grads: Sequence[Tensor],
    tensor: Sequence[int],
    loss: Sequence[int],
    group: Sequence[int],
    num_groups: int,
    num_losses: int,
    rule: str,
    parameters: Sequence[float],
    losses: Tensor | None,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    table = chunk_table(out, group, num_groups)
    if grads:
        addresses = combine_table(out, grads, tensor, loss, num_losses)
        gram = launch_gram(addresses, table, num_losses)
        weights, next_ = launch_rule_weights(gram, rule, parameters, losses, states)
        launch_combined(addresses, table, weights)
        return gram, weights, next_
    addresses = address_table(out)
    gram = addresses.new_empty(num_groups, 1, 1, dtype=torch.float64)
    weights = addresses.new_empty(num_groups, 1, dtype=torch.float32)
    with torch.cuda.device_of(weights):
        launch_rule_of_norms(addresses, table, weights, rule, parameters, sq_norms=gram)
        launch_scaled(addresses, table, weights)
    return gram, weights, addresses.new_empty(0, 1, dtype=torch.float32)
