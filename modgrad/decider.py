"""Asks the balancer: by its own code, or by its rule in one op."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modgrad import balance, rules
from modgrad.balancers.base import (
    Balancer,
    Modulation,
    Ruled,
    Statistics,
    next_state,
    rule_of,
    ruled_by,
)
from modgrad.memory import Memory
from modgrad.records import Decision


@dataclass(frozen=True)
class Decider:
    """From the statistics of a step to a decision; nothing is remembered until it is committed."""

    balancer: Balancer[Any]
    memory: Memory
    num_modalities: int
    num_losses: int
    takes_losses: bool  # whether `backward` is given them
    backend: str | None

    @torch.no_grad()
    def __call__(self, statistics: Statistics) -> Decision:
        balancer, state = self.balancer, self.memory.state
        rule = rule_of(balancer)
        if rule is None or not isinstance(balancer, Ruled):
            return self._decision(statistics, *balancer.update(statistics, state))
        statistic = ruled_by(rule, statistics)
        weights, new = balance.rule_weights(
            statistic, rule, statistics.losses, tuple(state), backend=self.backend
        )
        return self._decision(statistics, balancer.modulation(weights), next_state(state, new))

    @torch.no_grad()
    def balance(
        self,
        known: Statistics,
        grads: Sequence[Sequence[Tensor | None]],
        group: Sequence[int],
        out: Sequence[Tensor],
    ) -> Decision | None:
        """Measure, decide and combine the gradients of several losses in one op.

        None where the balancer's rule does not compare gradients: nothing is done then.
        """
        balancer, state = self.balancer, self.memory.state
        rule = rule_of(balancer)
        if rule is None or not isinstance(balancer, Ruled):
            return None
        if not rules.check(rule).compares_losses:
            return None
        gram, weights, new = balance.balance_(
            *(grads, group, self.num_modalities, rule, known.losses, tuple(state)),
            out=out,
            backend=self.backend,
        )
        measured = replace(known, gram=gram, grad_sq_norms=gram.sum((1, 2)))
        return self._decision(measured, balancer.modulation(weights), next_state(state, new))

    def _decision(self, statistics: Statistics, modulation: Modulation, state: Any) -> Decision:
        if modulation.noise is not None and self.takes_losses:
            raise NotImplementedError("GE noise with several losses")
        if modulation.tensor_scale is not None and not self.takes_losses:
            raise NotImplementedError("a scale per parameter tensor with one loss")
        shape = self.num_modalities, self.num_losses
        weights = modulation.weights.broadcast_to(shape).float()
        return Decision(statistics, modulation, weights, state)
