"""Several losses, each with its own weight in each modality: what stands in for ``backward``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from modgrad import gradients, ops
from modgrad.balancers.base import Statistics
from modgrad.decider import Decider
from modgrad.distributed import is_sharded, mean_over_ranks
from modgrad.held import HeldParameters
from modgrad.meter import Meter
from modgrad.observation import in_order
from modgrad.records import Decision

_OF_ONE_OP = frozenset({"gram", "grad_sq_norms", "losses", "scores"})
_OF_GRADIENTS = frozenset({"gram", "tensor_gram", "grad_sq_norms", "param_sq_norms"})


@dataclass(frozen=True)
class SeveralLosses:
    """Of these names; their weighted gradients are added to ``.grad`` of ``parameters``."""

    names: tuple[str, ...]
    parameters: HeldParameters
    meter: Meter
    decider: Decider
    process_group: ProcessGroup | None

    def checked(self, losses: Mapping[str, Tensor]) -> list[Tensor]:
        """One for each name, in their order, as scalars that gradients can be taken of."""
        values = in_order("losses", losses, self.names).values()
        for name, value in losses.items():
            if value.numel() != 1:
                found = f"has shape {list(value.shape)}"
                raise ValueError(f"`losses[{name!r}]` {found}, allowed: a scalar")
            if not value.requires_grad:
                raise ValueError(
                    f"`losses[{name!r}]` requires no gradient, allowed: a loss that leads to"
                    " trainable parameters (is it detached, are its encoders frozen?)"
                )
        return [value.reshape(()) for value in values]

    def plain_backward(self, losses: Sequence[Tensor]) -> None:
        """That of their sum, unmeasured."""
        own, shared = self.parameters.trainable()
        self._backward_of(torch.stack(list(losses)).sum(), [*own.parameters, *shared])

    def backward(self, losses: Sequence[Tensor], known: Statistics) -> Decision | None:
        """Measure, decide, and add the weighted gradients to ``.grad``.

        Weights of whole losses that are known without gradients cost one ordinary backward. None
        where the losses reach no encoder (all are frozen, or absent) and nothing weighs the losses
        of the rest: an ordinary backward too.
        """
        (parameters, group), shared = self.parameters.trainable()
        if any(map(is_sharded, parameters)):
            raise NotImplementedError(
                "backward of several losses with sharded parameters (DTensor), allowed: one loss,"
                " or parameters that are not sharded"
            )
        values = torch.stack([loss.detach().float() for loss in losses])
        known = replace(known, losses=mean_over_ranks(values, 1, self.process_group))
        if not self.meter.names & _OF_GRADIENTS:
            decision = self.decider(known)
            weights = decision.modulation.weights
            if weights.dim() == 1:
                total = (weights.to(losses[0].device) * torch.stack(list(losses))).sum()
                self._backward_of(total, [*parameters, *shared])
                return decision
        found_grads = gradients.per_loss(losses, parameters) if parameters else []
        reached = [
            i
            for i, each in enumerate(zip(*found_grads, strict=True))
            if any(g is not None for g in each)
        ]
        if not reached:
            self._backward_of(torch.stack(list(losses)).sum(), [*parameters, *shared])
            return None
        # what no loss reaches has no gradient, where a sum of none would be 0
        parameters, group = [parameters[i] for i in reached], [group[i] for i in reached]
        grads = [
            gradients.averaged([each[i] for i in reached], parameters, self.process_group)
            for each in found_grads
        ]
        combined = [torch.empty_like(p, requires_grad=False) for p in parameters]
        one_op = self.meter.names <= _OF_ONE_OP
        found = self.decider.balance(known, grads, group, combined) if one_op else None
        if found is None:
            found = self.decider(self.meter.of_losses(known, parameters, grads, group))
            _combine(found, grads, group, combined, self.meter.backend)
        whole = found.modulation.weights if found.modulation.weights.dim() == 1 else None
        of_shared = gradients.owned(gradients.of_sum(losses, whole, shared), shared)
        gradients.mean_over_ranks_(of_shared, self.process_group)
        gradients.accumulate([*parameters, *shared], [*combined, *of_shared])
        return found

    def _backward_of(self, total: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """An ordinary one, whose gradients are then averaged over the ranks.

        Under ``no_sync`` nobody else does it; where DDP has, the mean of equal values changes
        nothing.
        """
        total.backward()
        gradients.mean_over_ranks_([p.grad for p in parameters], self.process_group)


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
