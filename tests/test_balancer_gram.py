"""What holds for every method that answers the gram alone with weights per modality."""

import numpy as np
import pytest
import torch
from gradients import EPS32, draws, weigh

from modgrad.balancers import DWA, MGDA, AlignedMTL, CAGrad, GradNorm, MMPareto, PCGrad, UPGrad

ANY_ORDER = [MGDA(), CAGrad(0.4), UPGrad(), AlignedMTL()]
ALL = pytest.mark.parametrize("balancer", [*ANY_ORDER, PCGrad()], ids=lambda b: type(b).__name__)
UNORDERED = pytest.mark.parametrize("balancer", ANY_ORDER, ids=lambda b: type(b).__name__)


@ALL
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_the_gradients_does_not_matter(balancer, scale):
    gradients = draws(3)
    plain, scaled = weigh(balancer, gradients), weigh(balancer, gradients * scale)
    # float64 arithmetic, whose errors the condition (up to 1e8 of the gram) multiplies
    np.testing.assert_allclose(scaled, plain, rtol=1e-6, atol=1e-6)


@UNORDERED
@pytest.mark.parametrize("K", [2, 3, 4])
def test_permuting_losses_permutes_weights(balancer, K):
    gradients, order = draws(K), np.random.default_rng(0).permutation(K)
    permuted = weigh(balancer, gradients[:, order])
    np.testing.assert_allclose(permuted, weigh(balancer, gradients)[:, order], rtol=1e-6, atol=1e-6)


@ALL
def test_a_loss_without_a_gradient_takes_no_part(balancer):
    gradients = draws(3)
    with_zero = np.insert(gradients, 1, 0.0, axis=1)
    weights = weigh(balancer, with_zero)
    np.testing.assert_allclose(
        np.delete(weights, 1, axis=1), weigh(balancer, gradients), rtol=1e-6, atol=1e-6
    )
    assert (weights[:, 1] == (1 if isinstance(balancer, PCGrad) else 0)).all()


@ALL
@pytest.mark.parametrize(
    "change",
    [lambda g: g[:, [0, 0, 1]], lambda g: np.stack([g[:, 0], -g[:, 0], g[:, 1]], 1), np.zeros_like],
    ids=["twice", "opposed", "zeros"],
)
def test_degenerate_gradients_have_finite_weights(balancer, change):
    assert np.isfinite(weigh(balancer, change(draws(3)))).all()


@pytest.mark.parametrize("balancer", [MGDA(), CAGrad(0.0), UPGrad(), AlignedMTL()])
def test_equal_gradients_have_equal_weights(balancer):
    gradients = np.repeat(draws(2)[:, :1], 3, axis=1)
    np.testing.assert_allclose(weigh(balancer, gradients), 1 / 3, rtol=1e-3)


@ALL
def test_modalities_do_not_see_each_other(balancer):
    gradients = draws(3)
    together = weigh(balancer, gradients)
    alone = np.concatenate([weigh(balancer, g[None]) for g in gradients])
    np.testing.assert_allclose(together, alone, rtol=4 * EPS32, atol=1e-7)


@pytest.mark.parametrize("make", [MGDA, CAGrad, UPGrad, AlignedMTL, PCGrad, GradNorm, DWA])
def test_one_loss_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__} compares losses: `losses` names 1"):
        make().init(("audio", "visual"), 1, torch.device("cpu"))


@pytest.mark.parametrize("make", [MGDA, CAGrad, UPGrad])
def test_too_many_losses_are_refused(make):
    assert np.isfinite(weigh(make(), draws(10, M=2))).all()
    with pytest.raises(ValueError, match="`losses` names 11, allowed: 2 to 10"):
        make().init(("audio", "visual"), 11, torch.device("cpu"))


@pytest.mark.parametrize("num_losses", [1, 2, 4])
def test_mmpareto_has_a_loss_a_modality_and_a_joint_one(num_losses):
    with pytest.raises(ValueError, match=f"`losses` names {num_losses}, allowed: 3"):
        MMPareto().init(("audio", "visual"), num_losses, torch.device("cpu"))
