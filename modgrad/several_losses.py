"""Several losses, each with its own weight in each modality: what stands in for ``backward``."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad import gradients, ops
from modgrad.balancers.base import Statistics
from modgrad.decider import Decider
from modgrad.distributed import mean_over_ranks
from modgrad.meter import Meter
from modgrad.modalities import Assignment
from modgrad.records import Decision

_OF_ONE_OP = frozenset({"gram", "grad_sq_norms", "losses", "scores"})
_OF_GRADIENTS = frozenset({"gram", "tensor_gram", "grad_sq_norms", "param_sq_norms"})


def backward_of_sum(
    total: Tensor, parameters: Sequence[nn.Parameter], process_group: ProcessGroup | None
) -> None:
    """An ordinary backward, whose gradients are then averaged over the ranks.

    Under ``no_sync`` nobody else does it; where DDP has, the mean of equal values changes nothing.
    """
    total.backward()
    gradients.mean_over_ranks_([p.grad for p in parameters], process_group)


def backward(
    losses: Sequence[Tensor],
    own: Assignment,
    shared: Sequence[nn.Parameter],
    known: Statistics,
    meter: Meter,
    decide: Decider,
    process_group: ProcessGroup | None,
) -> Decision | None:
    """Measure, decide, and add the weighted gradients to ``.grad``.

    Weights of whole losses that are known without gradients cost one ordinary backward. None where
    all encoders are frozen and nothing weighs the losses of the rest: an ordinary backward too.
    """
    values = torch.stack([loss.detach().float() for loss in losses])
    known = replace(known, losses=mean_over_ranks(values, 1, process_group))
    if not meter.names & _OF_GRADIENTS:
        decision = decide(known)
        weights = decision.modulation.weights
        if weights.dim() == 1:
            total = (weights.to(losses[0].device) * torch.stack(list(losses))).sum()
            backward_of_sum(total, [*own.parameters, *shared], process_group)
            return decision
    parameters, group = own
    if not parameters:
        backward_of_sum(torch.stack(list(losses)).sum(), shared, process_group)
        return None
    grads = [
        gradients.averaged(each, parameters, process_group)
        for each in gradients.per_loss(losses, parameters)
    ]
    combined = [torch.empty_like(p, requires_grad=False) for p in parameters]
    one_op = meter.names <= _OF_ONE_OP
    found = decide.balance(known, grads, group, combined) if one_op else None
    if found is None:
        found = decide(meter.of_losses(known, parameters, grads, group))
        _combine(found, grads, group, combined, meter.backend)
    whole = found.modulation.weights if found.modulation.weights.dim() == 1 else None
    of_shared = gradients.owned(gradients.of_sum(losses, whole, shared), shared)
    gradients.mean_over_ranks_(of_shared, process_group)
    gradients.accumulate([*parameters, *shared], [*combined, *of_shared])
    return found


def _combine(
    decision: Decision,
    grads: Sequence[Sequence[Tensor | None]],
    group: Sequence[int],
    out: Sequence[Tensor],
    backend: str | None,
) -> None:
    weights, scale = decision.weights, decision.modulation.tensor_scale
    if scale is not None:  # a row of weights for each tensor
        owner = decision.statistics.tensor_group
        assert owner is not None, "a scale per tensor comes from the tensors' gram"
        weights, group = weights[owner] * scale.float()[:, None], range(len(group))
    ops.combine_(out, grads, group, weights, backend=backend)
