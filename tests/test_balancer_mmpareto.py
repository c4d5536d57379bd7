"""MMPareto against its formula on explicit gradients."""

import numpy as np
import pytest
from gradients import combine, draws, rounding, weigh

from modgrad.balancers import MMPareto


def paper(g, u, gamma):
    """The paper's update of one encoder, on vectors."""
    nearest = min(max((u - g) @ u / ((u - g) @ (u - g)), 0.0), 1.0)
    k = 0.5 if g @ u > 0 else nearest
    h = 2 * k * g + 2 * (1 - k) * u
    magnify = max(1.0, np.linalg.norm(g + u) / np.linalg.norm(h))
    return gamma * magnify * h


def encoders(M, seed):
    """[M, M + 1, D]: in encoder m the joint gradient and its own; no gradient of the others."""
    pairs = draws(2, seed, M)
    gradients = np.zeros((M, M + 1, pairs.shape[-1]))
    gradients[:, 0] = pairs[:, 0]
    gradients[range(M), range(1, M + 1)] = pairs[:, 1]
    return gradients, pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("M", [1, 2, 3, 20])
def test_formula(M, seed):
    gradients, pairs = encoders(M, seed)
    weights = weigh(MMPareto(1.3), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, (g, u) in enumerate(pairs):
        assert np.linalg.norm(found[m] - paper(g, u, 1.3)) <= bound[m]


def test_no_conflict_and_no_shrinking():
    gradients, pairs = encoders(20, 7)
    conflict = np.einsum("md,md->m", pairs[:, 0], pairs[:, 1]) <= 0
    assert 0 < conflict.sum() < 20, "both kinds"
    weights = weigh(MMPareto(1.0), gradients)
    found, bound = combine(weights, gradients), rounding(weights, gradients)
    for m, (g, u) in enumerate(pairs):
        assert found[m] @ g >= -bound[m] * np.linalg.norm(g)
        assert found[m] @ u >= -bound[m] * np.linalg.norm(u)
        assert np.linalg.norm(found[m]) >= np.linalg.norm(g + u) - bound[m]


def test_a_gradient_of_another_modalitys_loss_is_left_alone():
    gradients, _ = encoders(2, 0)
    stray = gradients.copy()
    stray[0, 2] = draws(1)[0, 0]
    assert (weigh(MMPareto(), stray) == weigh(MMPareto(), gradients)).all()
    assert weigh(MMPareto(), stray)[0, 2] == 1


def test_weights_stay_bounded_where_gradients_cancel():
    g = draws(1, M=1)[0, 0]
    for ratio in (-1.0, -2.0, -1e-3):
        for off in (0.0, 1e-9, 1e-6, 1e-3):
            u = ratio * g + off * np.linalg.norm(g) * draws(1, 5, M=1)[0, 0]
            weights = weigh(MMPareto(), np.stack([g, u])[None])
            # lambda <= |g + u| / (1e-4 sqrt(|g|^2 + |u|^2)) <= sqrt(2) 1e4, times 2 gamma = 3
            assert np.isfinite(weights).all()
            assert weights.max() <= 3 * 2**0.5 * 1e4
