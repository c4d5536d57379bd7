"""A late-fusion network whose modalities compete for each class, and its training.

Shape letters: M = 2 modalities, K classes, D features of a modality, H neurons of a class and
modality, N samples.

Source: Huang, Lin, Zhou, Yang and Huang, Modality Competition: What Makes Joint Training of
Multi-modal Network Fail in Deep Learning? (Provably), ICML 2022. The authors released no code.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modgrad.balancers.base import Balancer
from modgrad.theory.balancing import Weigher
from modgrad.theory.sparse_coding import MODALITIES, Samples, SparseCoding
from modgrad.theory.statistics import Array

_MEASURED = frozenset({"grad_sq_norms", "param_sq_norms", "response_losses", "scores"})


@dataclass(frozen=True)
class LateFusion:
    """f_j(x) = sum over modalities m and neurons l of s(<w_mjl, x_m>), s the smoothed ReLU:

        s(x) = 0 for x <= 0,  x^q / (q beta^(q-1)) up to beta,  x - (1 - 1/q) beta above

    Args:
        neurons: H, of each class and modality.
        power: q >= 3.
        threshold: beta > 0.
    """

    neurons: int = 5
    power: int = 3
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("neurons", 1), ("power", 3)):
            if not getattr(self, name) >= least:
                raise ValueError(f"`{name}` is {getattr(self, name)}, allowed: >= {least}")
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"`threshold` is {self.threshold}, allowed: > 0 and finite")

    def activation(self, x: Array) -> Array:
        q, beta = self.power, self.threshold
        low = np.clip(x, 0, beta)
        return np.asarray(low**q / (q * beta ** (q - 1)) + np.maximum(x - beta, 0))

    def slope(self, x: Array) -> Array:
        return np.asarray((np.clip(x, 0, self.threshold) / self.threshold) ** (self.power - 1))

    def initial(
        self, data: SparseCoding, deviation: float, generator: np.random.Generator
    ) -> tuple[Array, Array]:
        """Gaussian weights [D, K, H] by modality."""
        shape = data.features, data.classes, self.neurons
        first, second = (generator.normal(0, deviation, shape) for _ in MODALITIES)
        return first, second

    def logits(self, weights: Sequence[Array | None], features: Sequence[Array]) -> Array:
        """[N, K]; a modality whose weights are None adds nothing."""
        terms = [
            self.activation(np.tensordot(x, w, 1)).sum(2)
            for w, x in zip(weights, features, strict=True)
            if w is not None
        ]
        return np.asarray(np.sum(terms, 0))

    def train(
        self,
        initial: tuple[Array, Array],
        samples: Samples,
        *,
        lr: float = 1.0,
        steps: int = 8000,
        modalities: Collection[str] = MODALITIES,
        residual: float = 0.05,
        balancer: Balancer[Any] | None = None,
    ) -> tuple[Array | None, Array | None]:
        """Full-batch gradient descent on the cross entropy; the weights, None if left out.

        The weights stay W(0) + X^T A, so only A [N, K H] is trained, through the inner products
        of the samples: the same numbers, at N^2 instead of 2 N D multiplications a weight column.

        Args:
            modalities: one alone, or both.
            residual: training ends when no sample's 1 - p_y is above it.
            balancer: gives factors of each modality's gradient; reads ``scores``,
                ``response_losses``, ``grad_sq_norms`` and ``param_sq_norms``.
        """
        if not set(modalities) <= set(MODALITIES) or not modalities:
            raise ValueError(f"`modalities` is {list(modalities)}, allowed: {list(MODALITIES)}")
        if not 0 < lr < math.inf:
            raise ValueError(f"`lr` is {lr}, allowed: > 0 and finite")
        used = [m for m, name in enumerate(MODALITIES) if name in modalities]
        names = tuple(MODALITIES[m] for m in used)
        weigher = None if balancer is None else Weigher(balancer, names, _MEASURED)
        N, (_, K, H) = len(samples.targets), initial[0].shape
        kernels = [samples.features[m] @ samples.features[m].T for m in used]
        inputs = [samples.features[m] @ initial[m].reshape(-1, K * H) for m in used]
        norms = [float((initial[m] ** 2).sum()) for m in used]
        starts = [x.copy() for x in inputs]
        trained = [np.zeros((N, K * H)) for _ in used]
        everyone = np.arange(N)
        for step in range(steps):
            parts = [self.activation(x).reshape(N, K, H).sum(2) for x in inputs]
            p = _softmax(sum(parts[1:], start=parts[0]))
            p[everyone, samples.targets] -= 1
            if -p[everyone, samples.targets].min() < residual:
                break
            outer = np.repeat(p, H, axis=1) / -N
            changes = [outer * self.slope(x) for x in inputs]
            moves = [kernel @ change for kernel, change in zip(kernels, changes, strict=True)]
            factors = np.ones(len(used))
            if weigher is not None:
                own = np.array([_log_probability(part, samples.targets) for part in parts])
                grads = [(c * v).sum() for c, v in zip(changes, moves, strict=True)]
                # |W(0) + X^T A|^2 from what is at hand: X W(0) and X X^T A = inputs - starts
                params = [
                    n + (a * (x + s)).sum()
                    for n, a, x, s in zip(norms, trained, inputs, starts, strict=True)
                ]
                measured = {"scores": np.exp(own).mean(1), "response_losses": -own.mean(1)}
                measured |= {"grad_sq_norms": np.array(grads), "param_sq_norms": np.array(params)}
                factors = weigher.weights(step, measured)
            for a, x, change, move, factor in zip(
                trained, inputs, changes, moves, factors, strict=True
            ):
                a += lr * factor * change
                x += lr * factor * move
        weights: list[Array | None] = [None, None]
        for m, a in zip(used, trained, strict=True):
            weights[m] = initial[m] + (samples.features[m].T @ a).reshape(initial[m].shape)
        return weights[0], weights[1]


def _softmax(logits: Array) -> Array:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def _log_probability(logits: Array, targets: NDArray[np.int64]) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    own = shifted[np.arange(len(targets)), targets]
    return np.asarray(own - np.log(np.exp(shifted).sum(1)))
