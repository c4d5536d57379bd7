"""Deep linear networks of two modalities, trained on second-order statistics alone.

Shape letters: N problems side by side, T steps, D features of both modalities, H hidden units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modgrad.balancers.base import Balancer
from modgrad.theory.balancing import Weigher
from modgrad.theory.chains import gradients, products
from modgrad.theory.statistics import Array, SecondOrder
from modgrad.theory.trajectory import Trajectory
from modgrad.theory.unimodal_phase import check_network

_CHECKED_EVERY = 100  # steps: whether training is over, or diverges
_MEASURED = frozenset({"grad_sq_norms", "param_sq_norms"})


@dataclass(frozen=True)
class DeepLinear:
    """y = W_L ... W_(F+1) sum_m W_(F,m) ... W_(1,m) x_m: layers 1 to F belong to a modality each.

    Without biases, and with one output.

    Args:
        depth: L, >= 2.
        fusion_layer: F: 1 is early fusion, L late.
        width: H. With the balanced initialisation a width of 1 learns as any other.
    """

    depth: int
    fusion_layer: int
    width: int = 1

    def __post_init__(self) -> None:
        check_network(self.depth, self.fusion_layer)
        if self.width < 1:
            raise ValueError(f"`width` is {self.width}, allowed: >= 1")

    def train(
        self,
        statistics: Sequence[SecondOrder],
        *,
        init: float,
        lr: float | Sequence[float],
        steps: int,
        initialise: Literal["balanced", "random"] = "balanced",
        seed: int = 0,
        balancer: Balancer[Any] | None = None,
        tolerance: float = 1e-6,
    ) -> Trajectory:
        """Full-batch gradient descent on 1/2 E|y - f(x)|^2 of N problems, each with its network.

        Args:
            statistics: N problems with the same modalities, sizes and one target.
            init: u, the norm of each modality's layers at the start; shared ones have sqrt(2) u.
            lr: learning rate, one or N.
            steps: at most; fewer once every loss is within ``tolerance`` times its first value
                of the least.
            initialise: "balanced" layers have rank one, each aligned with the next, the first with
                the correlation of modality and target (where learning the other modality reverses
                that, with what it is then); "random" ones have Gaussian entries with
                that norm in the mean square.
            seed: problem n draws its initialisation from (seed, n).
            balancer: gives factors of the gradients in the layers of each modality, from their
                ``grad_sq_norms`` and ``param_sq_norms``.

        Raises:
            ValueError: arguments out of range, and training that diverges.
        """
        _check(statistics, init, steps, initialise)
        rate = np.broadcast_to(np.asarray(lr, dtype=float), len(statistics))[:, None, None]
        if not ((rate > 0) & (rate < math.inf)).all():
            raise ValueError(f"`lr` is {lr}, allowed: > 0 and finite")
        modalities = statistics[0].modalities
        draws = [
            self._initial(s, init, initialise, np.random.default_rng([seed, n]))
            for n, s in enumerate(statistics)
        ]
        own = [
            [np.stack([draw[0][m][i] for draw in draws]) for i in range(self.fusion_layer)]
            for m in range(2)
        ]
        shared = [
            np.stack([draw[1][i] for draw in draws]) for i in range(self.depth - self.fusion_layer)
        ]
        # each problem has a state of its own
        weighers = [Weigher(balancer, modalities, _MEASURED) for _ in statistics if balancer]
        totals = _descend(statistics, own, shared, rate, steps, tolerance, weighers)
        if totals is None:
            raise ValueError(f"`lr` is {lr}, allowed: less, training diverges")
        return Trajectory(tuple(statistics), totals)

    def _initial(
        self, statistics: SecondOrder, init: float, initialise: str, generator: np.random.Generator
    ) -> tuple[list[list[Array]], list[Array]]:
        """The layers of each modality, and the shared ones, from the input on."""
        L, F, H = self.depth, self.fusion_layer, self.width
        sizes = list(statistics.sizes.values())

        def unit(size: int) -> Array:
            x = generator.standard_normal(size)
            return np.asarray(x / np.linalg.norm(x))

        def layer(norm: float, out: Array, into: Array) -> Array:
            if initialise == "balanced":
                return np.asarray(norm * np.outer(out, into))
            shape = len(out), len(into)
            return generator.normal(0, norm / math.sqrt(math.prod(shape)), shape)

        # what enters the layers after the fusion, and at last the output
        after = [unit(H) for _ in range(F, L)] + [np.ones(1)]
        shared = [layer(math.sqrt(2) * init, after[i + 1], after[i]) for i in range(L - F)]
        own = []
        for name, size in zip(statistics.modalities, sizes, strict=True):
            drawn = _drawn(statistics, name)
            length = np.linalg.norm(drawn)
            inputs = drawn / length if length > 0 else unit(size)
            path = [inputs, *(unit(H) for _ in range(F - 1)), after[0]]
            own.append([layer(init, path[i + 1], path[i]) for i in range(F)])
        return own, shared


def _drawn(statistics: SecondOrder, modality: str) -> Array:
    """[D_m]: what a modality's weights are drawn to, in the end if that is another direction."""
    (other,) = set(statistics.modalities) - {modality}
    own, others = (statistics.cross[statistics.rows(m), 0] for m in (modality, other))
    waits = np.linalg.norm(own) < np.linalg.norm(others)
    if waits and (not own.any() or statistics.turned(other, modality)):
        return statistics.residual(other, modality)[:, 0]
    return np.asarray(own)


def _descend(
    statistics: Sequence[SecondOrder],
    own: list[list[Array]],
    shared: list[Array],
    rate: Array,
    steps: int,
    tolerance: float,
    weighers: list[Weigher],
) -> Array | None:
    """The total weights before each step, and after the last; None where they diverge."""
    parts = [statistics[0].rows(name) for name in statistics[0].modalities]
    covariance = np.stack([s.covariance for s in statistics])
    cross = np.stack([s.cross.T for s in statistics])
    power = np.array([s.power for s in statistics], dtype=float)
    least = np.array([s.least_loss for s in statistics])
    totals = np.empty((steps + 1, *cross[:, 0].shape))
    factors: Any = (1.0, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps + 1):
            above, above_shared, total = products(own, shared)
            totals[t] = total[:, 0]
            residual = total @ covariance - cross  # the gradient in the total weights
            if t % _CHECKED_EVERY == 0 or t == steps:
                loss = (power + (total * (residual - cross)).sum((1, 2))) / 2
                if not (loss <= 1e6 * power).all():
                    return None
                if t == steps or (loss - least <= tolerance * (power / 2 - least)).all():
                    return totals[: t + 1]
            grads, shared_grads = gradients(own, shared, above, above_shared, residual, parts)
            if weighers:
                factors = _factors(weighers, t, own, grads)
            for layers, changes, factor in zip(own, grads, factors, strict=True):
                for layer, change in zip(layers, changes, strict=True):
                    layer -= rate * factor * change
            for layer, change in zip(shared, shared_grads, strict=True):
                layer -= rate * change
    raise AssertionError("unreachable: the last step returns")


def _factors(
    weighers: list[Weigher], step: int, own: list[list[Array]], grads: list[list[Array]]
) -> Array:
    """[2, N, 1, 1]"""

    def squares(tensors: list[list[Array]]) -> Array:
        sums = [np.sum([(x**2).sum((1, 2)) for x in layers], 0) for layers in tensors]
        return np.stack(sums, 1)

    factors = [
        weigher.weights(step, {"grad_sq_norms": g, "param_sq_norms": p})
        for weigher, g, p in zip(weighers, squares(grads), squares(own), strict=True)
    ]
    return np.stack(factors, 1)[:, :, None, None]


def _check(statistics: Sequence[SecondOrder], init: float, steps: int, initialise: str) -> None:
    if not statistics:
        raise ValueError("`statistics` is empty, allowed: at least one problem")
    for n, s in enumerate(statistics):
        if s.sizes != statistics[0].sizes:
            raise ValueError(
                f"`statistics[{n}]` is of {dict(s.sizes)}, allowed: {dict(statistics[0].sizes)}"
            )
        if s.cross.shape[1] != 1:
            raise ValueError(
                f"`statistics[{n}]` has {s.cross.shape[1]} targets, allowed: one in simulations"
            )
    if not 0 < init < math.inf:
        raise ValueError(f"`init` is {init}, allowed: > 0 and finite")
    if steps < 1:
        raise ValueError(f"`steps` is {steps}, allowed: >= 1")
    if initialise not in ("balanced", "random"):
        raise ValueError(f"`initialise` is {initialise!r}, allowed: 'balanced', 'random'")
