"""Conditional learning speed of a training that is balanced by something else, or by nothing."""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from modgrad.balancers.base import Statistics
from modgrad.balancers.conditional_learning_speed import (
    ConditionalLearningSpeed,
    ConditionalLearningSpeedState,
)
from modgrad.modulator import Modulator
from modgrad.records import LastStep


class LearningSpeed:
    """Adds up what a modulator records anyway: no pass over gradients of its own, no host read.

        s_i = log10( sum_t mu(fusion_i; t) / sum_t mu(branch_i; t) ),   mu = |grad|^2 / |theta|^2

    The modulator has ``record=["grad_sq_norms", "param_sq_norms"]``, or a balancer that needs both.
    Steps whose norms are not finite or whose parameters are 0 add nothing.

    Args:
        fusion: for each branch the name of its fusion group, at least 2; all among the modalities.
        shared: a group that counts as fusion of every branch.
        decay: of the sums in a step, in (0, 1]; 1 remembers all alike.

    Source: Wu et al., ICML 2022; see ``ConditionalLearningSpeed``, whose sums these are.
    """

    def __init__(
        self, fusion: Mapping[str, str], *, shared: str | None = None, decay: float = 1.0
    ) -> None:
        # a tolerance that nothing exceeds: it measures, and never re-balances
        self._balancer = ConditionalLearningSpeed(
            fusion, shared=shared, decay=decay, tolerance=sys.float_info.max
        )
        self._state: ConditionalLearningSpeedState | None = None
        self._seen: LastStep | None = None

    @torch.no_grad()
    def step(self, modulator: Modulator) -> None:
        """Count the step that the modulator made last; one that is counted already is not again.

        Raises:
            ValueError: the modulator does not record the norms; a group is unknown.
        """
        last = modulator.last
        if last is None or last is self._seen:
            return
        grads, params = last.grad_sq_norms, last.param_sq_norms
        if grads is None or params is None:
            needed = "['grad_sq_norms', 'param_sq_norms']"
            raise ValueError(f"the modulator does not record the norms, allowed: record={needed}")
        state = self._state
        if state is None:
            state = self._balancer.init(last.modalities, 1, grads.device)
        zero = torch.zeros_like(grads, dtype=torch.int64).sum()
        statistics = Statistics(zero, zero, grad_sq_norms=grads, param_sq_norms=params)
        _, self._state = self._balancer.update(statistics, state)
        self._seen = last

    def speeds(self) -> Tensor:
        """s_i of every branch, float64 [N] on the device: NaN or inf while a sum is 0.

        Raises:
            RuntimeError: no step was counted.
        """
        if self._state is None:
            raise RuntimeError("no step was counted: call step(modulator) after optimizer.step()")
        return self._balancer.speeds(self._state)

    def read(self) -> dict[str, float | None]:
        """The speeds on the host, by branch; None where a sum is 0. This waits for the device."""
        values = self.speeds()
        finite = values.isfinite().tolist()
        pairs = zip(self._balancer.fusion, values.tolist(), finite, strict=True)
        return {name: value if known else None for name, value, known in pairs}

    def difference(self, first: str, second: str) -> float | None:
        """d_speed = s_first - s_second; None where either is.

        Positive: ``first`` leans more on what comes from the other.
        """
        values = self.read()
        a, b = values[first], values[second]
        return None if a is None or b is None else a - b
