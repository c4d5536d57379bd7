"""How much of what a modality alone would teach is lost in the multimodal feature.

Shape letters: N samples, D features of the network, d of a concept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from modgrad.diagnostics.extras import require
from modgrad.diagnostics.gathered import Array, checked_array, standardised

Samples = tuple[Tensor | Array, Mapping[str, Tensor | Array]]


@dataclass(frozen=True)
class Competition:
    """What ``competition_strength`` finds, by modality."""

    strength: dict[str, float]
    """d_m: 0, the concept can be recovered whole; about 1, no better than its mean."""
    null: dict[str, float]
    """The same after shuffling the concept's samples: a feature that knows nothing of it."""
    ceiling: dict[str, float]
    """The same with the whitened concept as the feature: the best that this ridge can recover,
    about (alpha / (N + alpha))^2."""


def competition_strength(
    fit: Samples, test: Samples, *, alpha: float = 120.0, shuffles: int = 5, seed: int = 0
) -> Competition:
    """How badly a ridge regression recovers mono-modal concepts from the multimodal feature.

        d_m = (1 / r) tr( Delta V^+ Delta^T ),   Delta = C' - C,   V = (C - mean)^T (C - mean)

    C [N, d] is the concept on the test samples, C' the ridge's prediction of it from the feature, r
    the rank of V: d, unless the concept has directions without variance, which are left out. V is
    the plain sum over samples: not N times a covariance with N - 1 below.

    Args:
        fit, test: the network's feature before the classifier, [N, D], and the mono-modal concepts,
            [N, d] by modality: the feature of a network trained on that modality alone. The ridge
            is fitted on held-out samples, and judged on others. See ``gather_features``.
        alpha: of the ridge, >= 0, on features standardised by ``fit``.
        shuffles: over which `null` is a mean, at least 1.
        seed: of the shuffles.

    Raises:
        ValueError: modalities, widths or numbers of samples that differ; fewer than two samples; a
            concept that is constant; numbers that are not finite.
        ImportError: scikit-learn is missing.

    Source: Li et al., Boosting Multi-modal Model Performance with Adaptive Gradient Modulation,
    ICCV 2023, and the ridge of its released code, whose V is N times a covariance; standardising is
    our own, so that alpha means the same for every network.
    """
    require("sklearn", "competition_strength")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"`alpha` is {alpha}, allowed: >= 0 and finite")
    if shuffles < 1:
        raise ValueError(f"`shuffles` is {shuffles}, allowed: at least 1")
    if set(fit[1]) != set(test[1]):
        raise ValueError(f"`test` has concepts {sorted(test[1])}, allowed: {sorted(fit[1])}")
    features = checked_array("fit", fit[0]), checked_array("test", test[0])
    generator = np.random.default_rng(seed)
    strength, null, ceiling = {}, {}, {}
    for m in fit[1]:
        concept = (
            checked_array(f"fit {m}", fit[1][m]),
            checked_array(f"test {m}", test[1][m]),
        )
        _check(m, features, concept)
        strength[m] = _unrecovered(features, concept, alpha)
        ceiling[m] = _unrecovered(_whitened(*concept), concept, alpha)
        shuffled = [
            _unrecovered(features, (generator.permutation(concept[0]), concept[1]), alpha)
            for _ in range(shuffles)
        ]
        null[m] = float(np.mean(shuffled))
    return Competition(strength, null, ceiling)


def _unrecovered(
    features: tuple[Array, Array], concept: tuple[Array, Array], alpha: float
) -> float:
    from sklearn.linear_model import Ridge

    x, x_test = standardised(*features)
    delta = Ridge(alpha=alpha).fit(x, concept[0]).predict(x_test).reshape(concept[1].shape)
    delta = delta - concept[1]
    centred = concept[1] - concept[1].mean(0)
    along = delta @ _whitening(centred)
    return float((along**2).sum() / along.shape[1])


def _whitening(centred: Array) -> Array:
    """V^(-1/2) [d, r], from the singular values of C: squaring to V would halve the digits."""
    _, s, directions = np.linalg.svd(centred, full_matrices=False)
    kept = s > s[0] * max(centred.shape) * np.finfo(np.float64).eps
    return np.asarray(directions[kept].T / s[kept])


def _whitened(fit: Array, test: Array) -> tuple[Array, Array]:
    """Uncorrelated directions of the concept in ``fit``, and the same in ``test``."""
    mean = fit.mean(0)
    if not np.ptp(fit, axis=0).any():
        return fit, test
    turn = _whitening(fit - mean)
    return (fit - mean) @ turn, (test - mean) @ turn


def _check(m: str, features: tuple[Array, Array], concept: tuple[Array, Array]) -> None:
    for x, c, which in zip(features, concept, ("fit", "test"), strict=True):
        if len(x) != len(c) or len(x) < 2:
            raise ValueError(
                f"`{which}` has {len(x)} features and {len(c)} samples of {m}, allowed: equally"
                " many, at least 2"
            )
    for argument, (a, b) in (("features", features), (m, concept)):
        if a.shape[1] != b.shape[1]:
            raise ValueError(
                f"`test` has {b.shape[1]} columns of {argument}, allowed: {a.shape[1]}, as `fit`"
            )
    if np.ptp(concept[1], axis=0).max() <= 1e-12 * np.abs(concept[1]).max():
        raise ValueError(f"the concept of {m} is constant in `test`: there is nothing to recover")
