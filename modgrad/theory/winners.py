"""Which modality learns a class: predicted from the start, and measured.

Shape letters: M = 2 modalities, K classes, D features of a modality, H neurons of a class and
modality, N samples.

Source: Huang, Lin, Zhou, Yang and Huang, Modality Competition: What Makes Joint Training of
Multi-modal Network Fail in Deep Learning? (Provably), ICML 2022.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modgrad.theory.competition import LateFusion
from modgrad.theory.sparse_coding import Samples
from modgrad.theory.statistics import Array


def error(logits: Array, targets: NDArray[np.int64]) -> float:
    """The share of wrong predictions."""
    return float((logits.argmax(1) != targets).mean())


def alignment(weights: Array, directions: Array) -> Array:
    """Gamma [K]: max over neurons l of [<w_jl, M_j>]_+, how much of class j's feature is learned.

    Args:
        weights: [D, K, H] of one modality.
        directions: [D, K]
    """
    return np.asarray(np.maximum(np.einsum("dkh,dk->kh", weights, directions).max(1), 0))


def feature_strength(codes: Array, targets: NDArray[np.int64], network: LateFusion) -> Array:
    """d [K] = sum over samples i of class j of z_ij^q / (N beta^(q-1)): how fast Gamma grows."""
    K, q = codes.shape[1], network.power
    own = np.where(targets[:, None] == np.arange(K), codes, 0.0)
    return np.asarray((own**q).mean(0) / network.threshold ** (q - 1))


@dataclass(frozen=True, eq=False)
class Winners:
    """Which modality learns each class in joint training."""

    modality: NDArray[np.int64]
    """[K]: 0 or 1; -1 where no neuron of either starts on the right side, and nobody learns."""
    margin: Array
    """[K] >= 0: logarithm of the ratio of the two sides; small ones may come out otherwise."""


def predict_winners(
    initial: tuple[Array, Array],
    directions: tuple[Array, Array],
    samples: Samples,
    network: LateFusion,
) -> Winners:
    """argmax over m of Gamma_jm(0) d_jm^(1/(q-2)), from the initialisation and the training data.

    Early on Gamma(t+1) = Gamma(t) + lr d Gamma(t)^(q-1): whoever blows up first takes the residual.
    """
    sides = [
        alignment(w, M) * feature_strength(z, samples.targets, network) ** (1 / (network.power - 2))
        for w, M, z in zip(initial, directions, samples.codes, strict=True)
    ]
    high, low = np.maximum(*sides), np.minimum(*sides)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.where(high > 0, np.log(high) - np.log(low), 0.0)
    winner = np.where(high > 0, (sides[1] > sides[0]).astype(np.int64), -1)
    return Winners(winner, margin)
