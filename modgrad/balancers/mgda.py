"""MGDA: the shortest convex combination of the losses' gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import Modulation, NoState, Statistics
from modgrad.balancers.gram import check_several, taking_part
from modgrad.balancers.simplex import (
    MAX_LOSSES,
    best,
    definite,
    face_inverses,
    normalised,
    onto_simplex,
    sq_norms,
)
from modgrad.rules import or_plain


@dataclass(frozen=True)
class MGDA:
    """Multiple-gradient descent: in each modality, the min-norm point of the gradients' hull.

        weights = argmin |sum_k w_k g_k|^2   over  w_k >= 0, sum_k w_k = 1

    The result has an inner product >= 0 with every gradient, and is 0 where no direction improves
    all losses. Losses without a gradient in a modality have weight 0 there and take no part; where
    all are without, weights are 1/K; where the gram is not finite, 1. The minimum is exact: see
    ``simplex.py``. Weights sum to 1, not K: a learning rate made for the sum of the losses is
    to be scaled up.

    Source: Désidéri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization,
    Comptes Rendus Mathématique 2012; Sener and Koltun, Multi-Task Learning as Multi-Objective
    Optimization, NeurIPS 2018, eq. 3, whose code iterates (Frank-Wolfe), and may normalise the
    gradients first, which is not done here.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        check_several(self, num_losses, MAX_LOSSES)
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        assert statistics.gram is not None
        part = taking_part(statistics.gram)
        gram = definite(normalised(statistics.gram, part))
        # inside a face all <g_k, g> are equal: w is a multiple of G^-1 1
        candidates = onto_simplex(face_inverses(gram, part).sum(-1), part)
        weights = best(candidates, sq_norms(candidates, gram))
        return Modulation(or_plain(weights, statistics.gram)), state
