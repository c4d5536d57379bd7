"""Measures the statistics that a balancer needs, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from modgrad import ops
from modgrad.balancers.base import Statistics


@dataclass(frozen=True)
class Meter:
    """Names of the statistics to measure, the number of modalities, the backend."""

    names: frozenset[str]
    num_modalities: int
    backend: str | None

    def _sq_norms(self, tensors: Sequence[Tensor], group: Sequence[int]) -> Tensor:
        return ops.group_sq_norms(tensors, group, self.num_modalities, backend=self.backend)

    def of_gradients(
        self,
        known: Statistics,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        group: Sequence[int],
        grad_scale: Tensor | None,
    ) -> Statistics:
        """What one loss's gradients add; they are ``grad_scale`` times too large, if given."""
        found = {}
        if "grad_sq_norms" in self.names:
            found["grad_sq_norms"] = self._sq_norms(grads, group)
            if grad_scale is not None:
                found["grad_sq_norms"] = found["grad_sq_norms"] / grad_scale.double().square()
        if "param_sq_norms" in self.names:
            found["param_sq_norms"] = self._sq_norms(parameters, group)
        return replace(known, **found)

    def of_losses(
        self,
        known: Statistics,
        parameters: Sequence[Tensor],
        grads: Sequence[Sequence[Tensor | None]],
        group: Sequence[int],
    ) -> Statistics:
        """What the gradients of several losses add."""
        found: dict[str, Tensor] = {}
        if self.names & {"gram", "grad_sq_norms"}:
            gram = ops.group_gram(grads, group, self.num_modalities, backend=self.backend)
            found |= {"gram": gram, "grad_sq_norms": gram.sum((1, 2))}  # the norm of their sum
        if "param_sq_norms" in self.names:
            found["param_sq_norms"] = self._sq_norms(parameters, group)
        return replace(known, **found)
