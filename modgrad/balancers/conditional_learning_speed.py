"""Balanced training by conditional learning speed: re-balance the branch that leans on others.

Shape letters: M groups of parameters, N branches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from modgrad.balancers.base import Ahead, Modulation, Statistics

# SplitMix64 (Steele, Lea and Flood 2014): shifts with masks, since >> keeps the sign in int64
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))


@dataclass(frozen=True)
class _Rebalancing:
    """What both schedules share: the branches, and the weights of a re-balancing step."""

    fusion: Mapping[str, str]
    remedy: Literal["gates", "freeze"] = field(default="gates", kw_only=True)

    def __post_init__(self) -> None:
        if len(self.fusion) < 2:
            raise ValueError(f"`fusion` has {list(self.fusion)}, allowed: at least 2 branches")
        names = [*self.fusion, *self.fusion.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"`fusion` names {names}, allowed: different groups")
        if self.remedy not in ("gates", "freeze"):
            raise ValueError(f"`remedy` is {self.remedy!r}, allowed: 'gates', 'freeze'")

    def _groups(
        self, modalities: tuple[str, ...], device: torch.device, shared: str | None = None
    ) -> Tensor:
        """bool [2, N, M]: the groups of each branch outside fusion, and in fusion."""
        extra = () if shared is None else (shared,)
        pairs = list(self.fusion.items())
        unknown = [m for pair in (*pairs, extra) for m in pair if m not in modalities]
        if unknown:
            raise ValueError(f"`fusion` names {unknown}, allowed: {', '.join(modalities)}")
        own = [[m == branch for m in modalities] for branch, _ in pairs]
        fused = [[m in (fusion, *extra) for m in modalities] for _, fusion in pairs]
        return torch.tensor([own, fused], device=device)

    def _weights(self, branch: Tensor, groups: Tensor) -> Tensor:
        """[M]: 1; with "freeze", 0 for groups of other branches than the one re-balanced."""
        if self.remedy == "gates":
            return torch.ones(groups.shape[2], device=groups.device)
        belongs = groups.any(0)
        chosen = torch.arange(len(belongs), device=groups.device) == branch
        mine = (belongs & chosen[:, None]).any(0)
        return torch.where((branch >= 0) & belongs.any(0) & ~mine, 0.0, 1.0)


class ConditionalLearningSpeedState(NamedTuple):
    branch: Tensor  # int64 []: the branch that the coming forward re-balances, -1 for none
    left: Tensor  # int64 []: re-balancing steps to come
    sums: Tensor  # float64 [2, N]: of mu outside fusion, and in fusion, over regular steps
    groups: Tensor  # bool [2, N, M], constant


@dataclass(frozen=True)
class ConditionalLearningSpeed(_Rebalancing, Ahead[ConditionalLearningSpeedState]):
    """Re-balance the branch that learns faster from the other modality than from its own.

    Branch i has parameters theta_i of its own, and theta_i' in the fusion layers that feed it:

        mu(theta; t) = |grad theta|^2 / |theta|^2                      of a whole group
        s_i(t)       = log10( sum_t mu(theta_i'; t) / sum_t mu(theta_i; t) )
        d_speed      = s_0 - s_1

    A regular step adds to the sums. From step ``warm_up`` on it also decides: if the largest s_i
    exceeds the smallest by more than ``tolerance``, the next ``window`` steps re-balance branch i.
    They leave the sums alone, and a regular step follows. ``state.branch`` is the branch that the
    coming forward has to re-balance, an index into ``fusion``, -1 in regular steps: what ``MMTM``
    takes. A step where a norm is not finite, or parameters are 0 or have no gradient, adds nothing;
    while a sum is 0 nothing is re-balanced.

    Args:
        fusion: for each branch the name of its fusion group; both among the modalities, at least 2.
        shared: a group that counts as fusion of every branch, such as the squeeze of an MMTM.
        tolerance: of the difference in log10 ratios, >= 0; 0.01 is 2.3 %.
        window: re-balancing steps in a row, >= 1.
        warm_up: steps before the first that decides, >= 0; the authors use those of one epoch.
        decay: of the sums in a regular step, in (0, 1]; 1 remembers all steps alike.
        remedy: "gates" leaves all weights at 1: the network acts on ``state.branch``. "freeze"
            gives weight 0 to the other branches' groups, their fusion included, in re-balancing
            steps; shared and other groups keep 1.

    Source: Wu, Jastrzebski, Cho and Geras, Characterizing and Overcoming the Greedy Nature of
    Learning in Multi-modal Deep Neural Networks, ICML 2022. The paper has two branches. Base 10 and
    a squeeze that counts in both are its released code's.
    """

    shared: str | None = None
    tolerance: float = 0.01
    window: int = 5
    warm_up: int = 0
    decay: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"grad_sq_norms", "param_sq_norms"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared in (*self.fusion, *self.fusion.values()):
            raise ValueError(f"`shared` is {self.shared!r}, allowed: a group not in `fusion`")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"`tolerance` is {self.tolerance}, allowed: finite and >= 0")
        if self.window < 1:
            raise ValueError(f"`window` is {self.window}, allowed: >= 1")
        if self.warm_up < 0:
            raise ValueError(f"`warm_up` is {self.warm_up}, allowed: >= 0")
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` is {self.decay}, allowed: (0, 1]")

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> ConditionalLearningSpeedState:
        groups = self._groups(modalities, device, self.shared)
        left = torch.zeros((), dtype=torch.int64, device=device)
        sums = torch.zeros(groups.shape[:2], dtype=torch.float64, device=device)
        return ConditionalLearningSpeedState(left - 1, left, sums, groups)

    @staticmethod
    def speeds(state: ConditionalLearningSpeedState) -> Tensor:
        """s_i of every branch, float64 [N]; d_speed of two is their difference."""
        return torch.log10(state.sums[1] / state.sums[0])

    def update(
        self, statistics: Statistics, state: ConditionalLearningSpeedState
    ) -> tuple[Modulation, ConditionalLearningSpeedState]:
        assert statistics.grad_sq_norms is not None
        assert statistics.param_sq_norms is not None
        # where, not a product with the mask: 0 times a NaN of another group is NaN
        grads = torch.where(state.groups, statistics.grad_sq_norms, 0.0).sum(2)
        params = torch.where(state.groups, statistics.param_sq_norms, 0.0).sum(2)
        mu = grads / params
        usable = mu.isfinite().all()
        regular = state.branch < 0
        sums = torch.where(regular & usable, self.decay * state.sums + mu, state.sums)
        s = self.speeds(state._replace(sums=sums))
        apart = s.isfinite().all() & (s.max() - s.min() > self.tolerance)
        due = regular & (statistics.step >= self.warm_up) & apart
        left = torch.where(due, self.window, (state.left - 1).clamp(min=0))
        branch = torch.where(due, s.argmax(), torch.where(left > 0, state.branch, -1))
        new = ConditionalLearningSpeedState(branch, left, sums, state.groups)
        return self.ahead(state), new

    def ahead(self, state: ConditionalLearningSpeedState) -> Modulation:
        return Modulation(self._weights(state.branch, state.groups)[:, None])


class RandomRebalancingState(NamedTuple):
    branch: Tensor  # int64 []: as for ConditionalLearningSpeed
    groups: Tensor  # bool [2, N, M], constant


@dataclass(frozen=True)
class RandomRebalancing(_Rebalancing):
    """Each step is regular or re-balances one of the N branches, with probability 1 / (N + 1) each.

    The baseline of ``ConditionalLearningSpeed``: blind to speeds, measures nothing. The branch of a
    step is a function of the seed and the step alone, the same on every rank.

    Args:
        fusion, remedy: as for ``ConditionalLearningSpeed``.
        seed: in [0, 2^63).

    Source: Wu et al., ICML 2022, the "random" variant.
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` is {self.seed}, allowed: [0, 2^63)")

    def _draw(self, step: Tensor) -> Tensor:
        z = (step + 1) * _GOLDEN + self.seed
        for shift, factor in _MIX:
            z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
        return z % (len(self.fusion) + 1) - 1

    def init(
        self, modalities: tuple[str, ...], num_losses: int, device: torch.device
    ) -> RandomRebalancingState:
        first = self._draw(torch.zeros((), dtype=torch.int64, device=device))
        return RandomRebalancingState(first, self._groups(modalities, device))

    def update(
        self, statistics: Statistics, state: RandomRebalancingState
    ) -> tuple[Modulation, RandomRebalancingState]:
        weights = self._weights(state.branch, state.groups)
        return Modulation(weights[:, None]), state._replace(branch=self._draw(statistics.step + 1))
