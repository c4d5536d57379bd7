"""Asks the balancer: by its own code, or by its rule in one op."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modgrad import balance, rules
from modgrad.balancers.base import (
    Ahead,
    Balancer,
    Modulation,
    Ruled,
    Statistics,
    next_state,
    rule_of,
    ruled_by,
)
from modgrad.memory import Memory
from modgrad.records import Decision, Pending
from modgrad.rules import Rule


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

    @property
    def by_norms(self) -> Rule | None:
        """The rule of a balancer that needs this step's norms and nothing else."""
        return rule_of(self.balancer) if self.balancer.needs == {"grad_sq_norms"} else None

    @torch.no_grad()
    def ahead(self, known: Statistics, late: frozenset[str]) -> Pending | None:
        """A decision that does not wait for the statistics called ``late``; None where it has to.

        With a rule of norms, the update that measures them fills in the weights.
        """
        balancer, state = self.balancer, self.memory.state
        if balancer.needs.isdisjoint(late):
            return Pending(self(known), late=late)
        if isinstance(balancer, Ahead):
            return Pending(self._decision(known, balancer.ahead(state), state), late=late)
        rule = self.by_norms
        if rule is None or not isinstance(balancer, Ruled):
            return None
        weights = torch.ones(self.num_modalities, 1, device=self.memory.step.device)
        decision = self._decision(known, balancer.modulation(weights), state)
        if decision.weights.data_ptr() != weights.data_ptr():  # made of them: not to be filled
            return None
        return Pending(decision, late=late, rule=rule)

    @torch.no_grad()
    def after(self, pending: Pending, found: Mapping[str, Tensor]) -> Pending:
        """The decision with its late statistics, and the state that they make."""
        late = {name: found[name] for name in pending.late}
        decision = pending.decision
        statistics, state = replace(decision.statistics, **late), decision.state
        if isinstance(self.balancer, Ahead) and not self.balancer.needs.isdisjoint(late):
            state = self(statistics).state
        return pending._replace(decision=decision._replace(statistics=statistics, state=state))

    def _decision(self, statistics: Statistics, modulation: Modulation, state: Any) -> Decision:
        if modulation.noise is not None and self.takes_losses:
            raise NotImplementedError("GE noise with several losses")
        if modulation.tensor_scale is not None and not self.takes_losses:
            raise NotImplementedError("a scale per parameter tensor with one loss")
        self.memory.check(state)
        shape = self.num_modalities, self.num_losses
        weights = modulation.weights.broadcast_to(shape).float()
        return Decision(statistics, modulation, weights, state)
