"""Second-order statistics of two modalities and a target: all that a linear network learns from.

Shape letters: M modalities, D features of all modalities, K targets, N samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """E[x x^T], E[x y^T] and E|y|^2 of two modalities, x = [x_A; x_B], and targets y.

    Args:
        sizes: the features of each modality by name, D_A and D_B: exactly two.
        covariance: [D, D], symmetric and positive semidefinite.
        cross: [D, K], or [D] for one target.
        power: E|y|^2, which enters the loss alone; None is the least that fits, a target without
            noise.

    Raises:
        ValueError: not two modalities, a shape, a number that is not finite, and statistics that
            no data have: a covariance that is no covariance, or a target correlated with
            features of no variance.
    """

    sizes: Mapping[str, int]
    covariance: Array
    cross: Array
    power: float | None = None

    def __post_init__(self) -> None:
        check_two("sizes", self.sizes)
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"`sizes[{name!r}]` is {size}, allowed: >= 1")
        D = sum(self.sizes.values())
        covariance, cross = array("covariance", self.covariance), array("cross", self.cross)
        cross = cross[:, None] if cross.ndim == 1 else cross
        if covariance.shape != (D, D):
            raise ValueError(f"`covariance` has shape {covariance.shape}, allowed: {(D, D)}")
        if cross.ndim != 2 or len(cross) != D or cross.shape[1] < 1:
            raise ValueError(f"`cross` has shape {cross.shape}, allowed: ({D},) or ({D}, K)")
        # 1e-6 and 1e-4 below: statistics estimated in float32, with errors of 1e-7, pass
        largest = np.abs(covariance).max()
        if np.abs(covariance - covariance.T).max() > 1e-6 * largest:
            raise ValueError("`covariance` is not symmetric, allowed: a covariance")
        covariance = (covariance + covariance.T) / 2
        least = float(np.linalg.eigvalsh(covariance)[0])
        if least < -1e-6 * largest:
            raise ValueError(f"`covariance` has the eigenvalue {least:.3g}, allowed: none below 0")
        set_ = object.__setattr__
        set_(self, "sizes", dict(self.sizes))
        set_(self, "covariance", covariance)
        set_(self, "cross", cross)
        off = np.linalg.norm(covariance @ self.solution - cross)
        if off > 1e-4 * np.linalg.norm(cross):
            raise ValueError(
                "`cross` correlates the target with features of no variance, allowed: no such"
            )
        explained = float((cross * self.solution).sum())
        power = explained if self.power is None else float(self.power)
        if not explained * (1 - 1e-6) <= power < np.inf:
            raise ValueError(f"`power` is {power:.6g}, allowed: at least {explained:.6g}, finite")
        set_(self, "power", max(power, explained))

    @classmethod
    def of_samples(
        cls, features: Mapping[str, Any], targets: Any, centred: bool = True
    ) -> "SecondOrder":
        """The statistics of samples: features [N, D_m] by modality (or [N]), targets [N, K] or [N].

        Tensors on any device, or arrays. ``centred`` takes the means off first, as biases would;
        without it these are raw moments, which a network without biases sees.
        """
        check_two("features", features)
        columns = {name: _rows(f"features[{name!r}]", x) for name, x in features.items()}
        y = _rows("targets", targets)
        for name, x in columns.items():
            if len(x) != len(y):
                raise ValueError(
                    f"`features[{name!r}]` has {len(x)} samples, allowed: {len(y)}, as `targets`"
                )
        x = np.concatenate(list(columns.values()), 1)
        if centred:
            largest = np.abs(x).max(0)
            x, y = x - x.mean(0), y - y.mean(0)
            x[:, np.abs(x).max(0) <= 1e-12 * largest] = 0  # constant, and rounded in the mean
        sizes = {name: column.shape[1] for name, column in columns.items()}
        return cls(sizes, x.T @ x / len(x), x.T @ y / len(x), float((y**2).sum() / len(y)))

    @classmethod
    def toy(
        cls,
        deviation_ratio: float,
        correlation: float = 0.0,
        teacher: tuple[float, float] = (1.0, 1.0),
    ) -> "SecondOrder":
        """Two scalar modalities "A" and "B", y = teacher . (x_A, x_B), sigma_B = 1.

        Args:
            deviation_ratio: sigma_A / sigma_B, > 0.
            correlation: of x_A and x_B, in (-1, 1).
        """
        if not 0 < deviation_ratio < np.inf:
            raise ValueError(f"`deviation_ratio` is {deviation_ratio}, allowed: > 0, finite")
        if not -1 < correlation < 1:
            raise ValueError(f"`correlation` is {correlation}, allowed: (-1, 1)")
        joint = correlation * deviation_ratio
        covariance = np.array([[deviation_ratio**2, joint], [joint, 1.0]])
        return cls({"A": 1, "B": 1}, covariance, covariance @ np.asarray(teacher, dtype=float))

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def solution(self) -> Array:
        """[D, K]: the weights of least norm that minimise the loss."""
        return pseudo_inverse(self.covariance) @ self.cross

    @property
    def least_loss(self) -> float:
        """min 1/2 E|y - W x|^2"""
        return self.loss(self.solution)

    def loss(self, weights: Array) -> float:
        """1/2 E|y - W^T x|^2 of weights [D, K]."""
        assert self.power is not None
        quadratic = (weights * (self.covariance @ weights)).sum() - 2 * (weights * self.cross).sum()
        return max(0.0, float(self.power + quadratic) / 2)

    def rows(self, modality: str) -> slice:
        """Where the features of a modality stand among the D."""
        names = list(self.sizes)
        start = sum(self.sizes[name] for name in names[: names.index(modality)])
        return slice(start, start + self.sizes[modality])

    def alone(self, modality: str) -> Array:
        """[D_m, K]: the regression of the target on one modality, Sigma_m^+ Sigma_mY."""
        own = self.rows(modality)
        return pseudo_inverse(self.covariance[own, own]) @ self.cross[own]

    def residual(self, first: str, second: str) -> Array:
        """[D_B, K]: Sigma_By - Sigma_BA Sigma_A^+ Sigma_Ay, 0 where only rounding is left.

        What draws the second modality's weights once the first has explained what it can.
        """
        own = self.cross[self.rows(second)]
        explained = self.covariance[self.rows(second), self.rows(first)] @ self.alone(first)
        left = own - explained
        rounding = 1e-9 * (np.linalg.norm(own) + np.linalg.norm(explained))
        return left if np.linalg.norm(left) > rounding else np.zeros_like(left)

    def turned(self, first: str, second: str) -> bool:
        """What draws the second modality's weights is reversed by learning the first."""
        own, left = self.cross[self.rows(second)], self.residual(first, second)
        size = np.linalg.norm(own) * np.linalg.norm(left)
        return bool(size > 0 and (own * left).sum() < -0.99 * size)


def check_two(argument: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"`{argument}` is {type(value).__name__}, allowed: a dict by modality")
    if len(value) != 2:
        raise ValueError(f"`{argument}` has {list(value)}, allowed: exactly two modalities")


def array(argument: str, value: Any) -> Array:
    """As float64 on the host, finite."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    out = np.array(value, dtype=np.float64)
    if not np.isfinite(out).all():
        raise ValueError(f"`{argument}` holds NaN or infinity, allowed: finite numbers")
    return out


def pseudo_inverse(matrix: Array) -> Array:
    """Of a covariance: directions of no variance, up to rounding, are left out."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > _rounding(values)
    return np.asarray((vectors[:, kept] / values[kept]) @ vectors[:, kept].T)


def is_singular(matrix: Array) -> bool:
    values: Array = np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)
    return bool(values[0] <= _rounding(values))


def _rounding(values: Array) -> float:
    """What an eigenvalue of 0 may have become; a negative one shows how wide the input is off."""
    return float(max(8 * len(values) * np.finfo(np.float64).eps * values[-1], -2 * values[0]))


def _rows(argument: str, value: Any) -> Array:
    out = array(argument, value)
    out = out[:, None] if out.ndim == 1 else out
    if out.ndim != 2 or out.size == 0:
        raise ValueError(f"`{argument}` has shape {out.shape}, allowed: [N] or [N, D], not empty")
    return out
