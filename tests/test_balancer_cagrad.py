"""CAGrad: a duality gap of 0 proves both the weights and the direction optimal."""

import numpy as np
import pytest
from gradients import combine, draws, lengths, rounding, weigh

from modgrad.balancers import CAGrad


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("K", "D"), [(2, 20), (3, 20), (5, 20), (8, 20), (3, 3), (2, 2)])
def test_duality_gap(K, D, c):
    """min_k <g_k, d> <= <g_w, g_0> + c |g_0| |g_w| for all d in the ball and all w."""
    gradients = draws(K, D=D)
    weights = weigh(CAGrad(c), gradients)
    g_0 = gradients.mean(1)
    d = combine(weights, gradients)
    error = rounding(weights, gradients)
    radius = c * lengths(g_0)
    assert (lengths(d - g_0) <= radius + error).all()

    w = weights - 1 / K
    # 2^-22: 1/K and the weight are rounded, each relative to numbers that may nearly cancel
    assert (w >= -(2**-22) * np.abs(weights).max(1, keepdims=True)).all()
    w = w / w.sum(1, keepdims=True)
    g_w = combine(w, gradients)
    primal = np.einsum("md,mkd->mk", d, gradients).min(1)
    dual = (g_w * g_0).sum(1) + radius * lengths(g_w)
    assert (dual - primal <= 4 * error * lengths(gradients).max(1)).all()


def test_the_worst_off_loss_gains_over_the_mean():
    gradients = draws(3)
    mean, d = gradients.mean(1), combine(weigh(CAGrad(0.5), gradients), gradients)
    worst = [np.einsum("md,mkd->mk", x, gradients).min(1) for x in (mean, d)]
    assert (worst[1] > worst[0]).all()


def test_c_of_zero_is_the_mean():
    np.testing.assert_array_equal(weigh(CAGrad(0.0), draws(4)), 0.25)


def test_weights_stay_bounded_where_gradients_cancel():
    gradients = draws(3)
    gradients[:, 2] = -gradients[:, 0] - gradients[:, 1]
    nearly = gradients + 1e-7 * draws(3, 1)
    for g in (gradients, nearly):
        weights = weigh(CAGrad(0.9), g)
        assert np.isfinite(weights).all()
        # |g_w| >= 1e-4 w_k |g_k| for each k
        bound = 1 / 3 + 0.9 * lengths(g.mean(1))[:, None] * 1e4 / lengths(g)
        assert (weights <= bound * 1.001).all()
