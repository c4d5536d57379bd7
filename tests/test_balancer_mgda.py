"""MGDA: the min-norm point, by formula for two losses and by optimality for more."""

import itertools

import numpy as np
import pytest
from gradients import combine, draws, lengths, rounding, weigh

from modgrad.balancers import MGDA
from modgrad.balancers.simplex import RIDGE


def tolerances(weights, gradients):
    """Of the combination's length, and of its squared length that the ridge may cost."""
    return rounding(weights, gradients), RIDGE * (gradients**2).sum(-1).max(-1)


def test_formula_of_two():
    gradients = draws(2)
    weights = weigh(MGDA(), gradients)
    for w, (g, u) in zip(weights, gradients, strict=True):
        k = min(max((u - g) @ u / ((u - g) @ (u - g)), 0.0), 1.0)
        # the ridge moves k by at most RIDGE times the condition, here below 1e3
        np.testing.assert_allclose(w, [k, 1 - k], rtol=2**-23, atol=1e-9)


@pytest.mark.parametrize("D", [20, 2, 1])
@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_conditions_of_optimality(K, D):
    """<g_k, g> >= |g|^2 for all k: sufficient, as the problem is convex."""
    gradients = draws(K, D=D)
    weights = weigh(MGDA(), gradients)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=K * 2**-23)
    g = combine(weights, gradients)
    length, square = tolerances(weights, gradients)
    products = np.einsum("md,mkd->mk", g, gradients)
    # <g_k, g> is continuous in g, whose square is off by `square`: |g - g*| <= sqrt(square)
    off = (length + np.sqrt(square))[:, None]
    longest = lengths(gradients).max(1)[:, None]
    assert (products >= (g**2).sum(1)[:, None] - 3 * off * longest).all()


@pytest.mark.parametrize("D", [20, 2])
def test_no_point_of_a_grid_over_the_simplex_is_shorter(D):
    gradients, N = draws(3, D=D), 60
    weights = weigh(MGDA(), gradients)
    grid = np.array([p for p in itertools.product(range(N + 1), repeat=3) if sum(p) == N]) / N
    shortest = np.linalg.norm(np.einsum("gk,mkd->mgd", grid, gradients), axis=-1).min(1)
    length, square = tolerances(weights, gradients)
    assert (lengths(combine(weights, gradients)) <= shortest + length + np.sqrt(square)).all()
