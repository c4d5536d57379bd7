"""One loss, whose gradients are there: measure them, decide, and scale them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from modgrad import ops
from modgrad.balance import balance_
from modgrad.balancers.base import OBSERVED, Statistics
from modgrad.decider import Decider
from modgrad.distributed import is_sharded, local
from modgrad.held import HeldParameters
from modgrad.meter import Foreseen, Meter, unscaled
from modgrad.records import Pending


@dataclass(frozen=True)
class OneLoss:
    """Whose gradients are in ``.grad`` of ``parameters``; gradients are of all of those."""

    parameters: HeldParameters
    meter: Meter
    decider: Decider

    def takes_one_op(self, grads: Sequence[Tensor | None]) -> bool:
        """Whether they can be measured, weighed by a rule and scaled at once."""
        by_norms = self.meter.names == {"grad_sq_norms"} and self.decider.by_norms is not None
        is_scaled = self.parameters.grad_scale is not None
        return by_norms and not is_scaled and not self._are_sharded(grads)

    def decide(
        self,
        known: Statistics,
        grads: Sequence[Tensor | None],
        *,
        ahead: bool,
        foreseen: Foreseen | None,
    ) -> Pending:
        """What is to be done with the gradients; nothing is, yet.

        Args:
            known: without the gradients.
            ahead: decide before the norms are there, where that can be.
            foreseen: their norms, if somebody measured them before.
        """
        late, grad_scale = self.meter.names - OBSERVED, self.parameters.grad_scale
        if "grad_sq_norms" in late and foreseen is not None and foreseen.holds(grads):
            known = replace(known, grad_sq_norms=unscaled(foreseen.sq_norms, grad_scale))
            late -= {"grad_sq_norms"}
        pending = self.decider.ahead(known, late) if late and ahead else None
        if late and pending is None:
            if self._are_sharded(grads):
                raise NotImplementedError(
                    f"{sorted(late)} of sharded gradients (DTensor), allowed: scores and"
                    " response_losses, which `observe` is shown, or parameters that are not sharded"
                )
            known = self.meter.of_gradients(known, *self.parameters.present(grads), grad_scale)
        if pending is None:
            pending = Pending(self.decider(known))
        if pending.decision.modulation.noise is None:
            return pending
        if self._are_sharded(grads):
            raise NotImplementedError(
                "GE noise on sharded gradients (DTensor), allowed: noise=0, or parameters that are"
                " not sharded"
            )
        return pending._replace(seed=self.decider.memory.seed_of_step())

    def scale_(self, grads: Sequence[Tensor | None], pending: Pending) -> dict[str, Tensor]:
        """Scale them in place; returns what was measured on the way, float64 [M]."""
        _, own, group = self.parameters.present(grads)
        backend, weights = self.meter.backend, pending.decision.weights[:, 0]
        if pending.rule is None:
            noise = pending.decision.modulation.noise
            ops.modulate_(local(own), group, weights, noise, pending.seed, backend=backend)
            return {}
        found = balance_(local(own), group, len(weights), pending.rule, backend=backend)
        weights.copy_(found.weights[:, 0])
        return {"grad_sq_norms": found.gram[:, 0, 0]}

    def _are_sharded(self, grads: Sequence[Tensor | None]) -> bool:
        return any(map(is_sharded, self.parameters.present(grads)[1]))
