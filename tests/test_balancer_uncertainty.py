"""Uncertainty weighting: its gradient, its fixed point, its bounds."""

import math

import numpy as np
import torch

from modgrad.balancers import Statistics, UncertaintyWeighting


def run(balancer, losses):
    state = balancer.init(("audio", "visual"), len(losses[0]), torch.device("cpu"))
    out = []
    for i, step in enumerate(losses):
        at = torch.tensor(i), torch.tensor(0)
        modulation, state = balancer.update(Statistics(*at, losses=torch.tensor(step)), state)
        out.append(modulation.weights.tolist())
    return np.array(out), state


def test_against_autograd():
    losses = np.random.default_rng(0).uniform(0.1, 3, (30, 3)).tolist()
    found, state = run(UncertaintyWeighting(lr=0.1), losses)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for i, step in enumerate(losses):
        np.testing.assert_allclose(found[i], torch.exp(-s).detach(), rtol=8 * 2**-24 * (i + 1))
        objective = (torch.exp(-s) * torch.tensor(step, dtype=torch.float64) + s / 2).sum()
        (gradient,) = torch.autograd.grad(objective, s)
        s = (s - 0.1 * gradient).detach().requires_grad_()
    np.testing.assert_allclose(state.log_variance, s.detach(), rtol=1e-5, atol=1e-6)


def test_a_constant_loss_ends_at_the_inverse_of_its_double():
    found, _ = run(UncertaintyWeighting(lr=0.5), [[0.25, 1.0, 4.0]] * 200)
    np.testing.assert_allclose(found[-1], [2.0, 0.5, 0.125], rtol=1e-5)


def test_a_loss_that_is_not_finite_leaves_its_weight_alone():
    found, _ = run(UncertaintyWeighting(), [[1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [1.0, 1]])
    assert found[1, 0] == found[2, 0] == found[3, 0]
    assert found[1, 1] != found[3, 1]


def test_weights_are_bounded():
    for loss, end in ((1e30, math.exp(-10)), (-1e30, math.exp(10))):
        found, _ = run(UncertaintyWeighting(lr=1.0), [[loss]] * 3)
        np.testing.assert_allclose(found[-1], end, rtol=1e-6)
