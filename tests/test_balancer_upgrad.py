"""UPGrad against projections found by cyclic correction of the vectors."""

import numpy as np
import pytest
from gradients import combine, draws, lengths, rounding, weigh

from modgrad.balancers import UPGrad


def project(g, rows):
    """``g`` onto {d : <d, r> >= 0 for all rows r}, for rows of length 1 (Hildreth's method)."""
    u, d = np.zeros(len(rows)), g.copy()
    for _ in range(20000):
        change = 0.0
        for j, row in enumerate(rows):
            step = max(-u[j], -(row @ d))
            u[j] += step
            d += step * row
            change = max(change, abs(step))
        if change <= 1e-15 * np.linalg.norm(g):
            return d
    raise AssertionError("no convergence")


@pytest.mark.parametrize(("K", "D"), [(2, 20), (3, 20), (5, 20), (8, 20), (3, 3), (3, 2), (2, 1)])
def test_formula(K, D):
    gradients = draws(K, D=D)
    weights = weigh(UPGrad(), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, g in enumerate(gradients):
        rows = g / lengths(g)[:, None]
        expected = np.mean([project(x, rows) for x in g], 0)
        # the ridge adds up to sqrt(1e-12) of the length of what is projected, where the gram is
        # singular; float64 and the loop's own stop are below that
        slack = 2e-6 * lengths(g).max() if D < K else 1e-9 * lengths(g).max()
        assert np.linalg.norm(found[m] - expected) <= bound[m] + slack


@pytest.mark.parametrize("K", [2, 3, 6])
def test_conflicts_with_no_gradient(K):
    gradients = draws(K)
    weights = weigh(UPGrad(), gradients)
    products = np.einsum("md,mkd->mk", combine(weights, gradients), gradients)
    assert (products >= -rounding(weights, gradients)[:, None] * lengths(gradients)).all()


def test_without_conflict_it_is_the_mean():
    np.testing.assert_array_equal(weigh(UPGrad(), np.abs(draws(4))), 0.25)


def test_a_gradient_a_million_times_shorter_is_respected():
    g, u = draws(2, M=1)[0]
    u = -g + 0.3 * np.linalg.norm(g) / np.linalg.norm(u) * u
    pair = np.stack([g, 1e-7 * u])[None]
    weights = weigh(UPGrad(), pair)
    products = combine(weights, pair) @ pair[0].T
    assert (products >= -rounding(weights, pair)[:, None] * lengths(pair)).all()
