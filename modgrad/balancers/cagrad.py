"""CAGrad: near the mean gradient, the direction that helps the worst-off loss most."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modgrad.balancers.base import Modulation, NoState, Statistics
from modgrad.balancers.gram import check_several, evenly, taking_part
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

SHORTEST = 1e-4  # |g_w| / sum_k w_k |g_k|: what is left of float32 gradients below is rounding


@dataclass(frozen=True)
class CAGrad:
    """Conflict-averse gradient: ``max_d min_k <g_k, d>`` with ``|d - g_0| <= c |g_0|``.

    In each modality, with g_0 = mean_k g_k and g_w = sum_k w_k g_k:

        w       = argmin <g_w, g_0> + c |g_0| |g_w|   over  w_k >= 0, sum_k w_k = 1
        weights = 1/K + c |g_0| / |g_w| w

    c = 0 is the mean gradient; c -> 1 nears MGDA. Losses without a gradient in a modality have
    weight 0 there and do not count in K; where all are without, weights are 1/K; where the gram is
    not finite, 1. The minimum over w is exact: see ``simplex.py``. Where the gradients
    cancel, |g_w| counts as 1e-4 of sum_k w_k |g_k| at least. Weights are of a mean, not a sum.

    Args:
        c: how far from the mean gradient, in [0, 1).

    Source: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021,
    algorithm 1. The released code searches w numerically and by default divides d by 1 + c^2
    afterwards; the paper does not, nor is it done here.
    """

    c: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    def __post_init__(self) -> None:
        if not 0 <= self.c < 1:
            raise ValueError(f"`c` is {self.c}, allowed: [0, 1)")

    def init(self, modalities: tuple[str, ...], num_losses: int, device: torch.device) -> NoState:
        check_several(self, num_losses, MAX_LOSSES)
        return NoState()

    def update(self, statistics: Statistics, state: NoState) -> tuple[Modulation, NoState]:
        assert statistics.gram is not None
        part = taking_part(statistics.gram)
        gram, mean = normalised(statistics.gram, part), evenly(part)
        b = (gram @ mean[..., None]).squeeze(-1)  # [M, K]: <g_k, g_0>
        radius = self.c * (mean * b).sum(-1, keepdim=True).clamp(min=0).sqrt()  # [M, 1]: c |g_0|
        # Inside a face G w / |g_w| = (mu 1 - b) / radius. With p = G^-1 1 and q = G^-1 b, w is a
        # multiple of mu p - q, and |w|_G = |g_w| makes mu the larger root of
        # sum(p) mu^2 - 2 sum(q) mu + <b, q> - radius^2 = 0.
        gram = definite(gram)
        inverse = face_inverses(gram, part)
        p, q = inverse.sum(-1), (inverse @ b[:, None, :, None]).squeeze(-1)  # [M, F, K]
        P, R, Q = p.sum(-1), q.sum(-1), (q @ b[..., None]).squeeze(-1)  # [M, F]
        mu = (R + (R * R - P * (Q - radius * radius)).clamp(min=0).sqrt()) / P
        inner = onto_simplex(mu[..., None] * p - q, part)
        # where g_w = 0 is optimal the equation does not hold: the min-norm points are there
        candidates = torch.cat([inner, onto_simplex(p, part)], 1)
        norms = sq_norms(candidates, gram).sqrt()
        w = best(candidates, (candidates @ b[..., None]).squeeze(-1) + radius * norms)
        lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        shortest = SHORTEST * (w * lengths).sum(-1, keepdim=True)
        norm = sq_norms(w[:, None], gram).sqrt().maximum(shortest)
        return Modulation(or_plain(mean + radius / norm * w, statistics.gram)), state
