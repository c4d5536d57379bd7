"""Data of which each modality shows the class in a direction of its own.

Shape letters: M = 2 modalities, K classes, D features of a modality, N samples.

Source: Huang, Lin, Zhou, Yang and Huang, Modality Competition: What Makes Joint Training of
Multi-modal Network Fail in Deep Learning? (Provably), ICML 2022.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modgrad.theory.statistics import Array

MODALITIES = ("1", "2")


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of a draw of ``SparseCoding``."""

    features: tuple[Array, Array]
    """[N, D] by modality."""
    targets: NDArray[np.int64]
    codes: tuple[Array, Array]
    """[N, K] by modality: how much of each class's direction a sample holds."""


@dataclass(frozen=True)
class SparseCoding:
    """x_m = M_m z_m + noise: each class has a direction of its own in each modality.

    In a sufficient sample z_m at the true class is uniform in [1, magnitude_m], in an insufficient
    one 0, so that modality m cannot tell the class. Other classes' entries are uniform in
    [0, clutter] with probability ``sparsity``, else 0.

    Args:
        magnitudes: largest z_m at the true class, >= 1, of each modality.
        insufficient: probability of an insufficient sample, of each modality; independent.
        noise: expected norm of the Gaussian noise.
        classes, features, clutter, sparsity: K, D >= K, and the other entries.
    """

    magnitudes: tuple[float, float] = (4.0, 1.01)
    insufficient: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.2
    classes: int = 4
    features: int = 100
    clutter: float = 0.0
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (("magnitudes", 1.0, math.inf), ("insufficient", 0.0, 1.0)):
            values = getattr(self, name)
            if len(values) != 2 or not all(low <= v <= high and v < math.inf for v in values):
                raise ValueError(f"`{name}` is {values}, allowed: two numbers in [{low}, {high}]")
        for name, low, high in (
            ("noise", 0.0, math.inf),
            ("classes", 2, math.inf),
            ("features", self.classes, math.inf),
            ("clutter", 0.0, 1.0),
            ("sparsity", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and value < math.inf):
                raise ValueError(f"`{name}` is {value}, allowed: {low} to {high}")

    def directions(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """[D, K] with orthonormal columns, by modality."""
        draws = (generator.standard_normal((self.features, self.classes)) for _ in MODALITIES)
        first, second = (np.linalg.qr(draw)[0] for draw in draws)
        return first, second

    def draw(
        self, directions: tuple[Array, Array], samples: int, generator: np.random.Generator
    ) -> Samples:
        N, K, D = samples, self.classes, self.features
        targets = generator.integers(K, size=N)
        features, codes = [], []
        for M, magnitude, rate in zip(directions, self.magnitudes, self.insufficient, strict=True):
            z = generator.uniform(0, self.clutter, (N, K))
            z *= generator.random((N, K)) < self.sparsity
            own = generator.uniform(1, magnitude, N) * (generator.random(N) >= rate)
            z[np.arange(N), targets] = own
            noise = generator.standard_normal((N, D)) * (self.noise / math.sqrt(D))
            features.append(z @ M.T + noise)
            codes.append(z)
        return Samples((features[0], features[1]), targets, (codes[0], codes[1]))
