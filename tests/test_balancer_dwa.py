"""DWA over epochs, by hand."""

import math

import networks
import numpy as np
import torch
from test_backward import losses_of, setup

from modgrad.balancers import DWA, Statistics


def run(balancer, epochs):
    """The weights of each step; ``epochs`` is a list of (epoch, losses of its steps)."""
    state = balancer.init(("audio", "visual"), 2, torch.device("cpu"))
    out = []
    for epoch, steps in epochs:
        for losses in steps:
            at = torch.tensor(len(out)), torch.tensor(epoch)
            modulation, state = balancer.update(Statistics(*at, losses=torch.tensor(losses)), state)
            out.append(modulation.weights.tolist())
    return out


def softmax(a, b):
    return [2 / (1 + math.exp(b - a)), 2 / (1 + math.exp(a - b))]


def test_ratios_of_epoch_means():
    # means (2, 4), then (1, 4), then (2, 2): ratios (1/2, 1) in epoch 2 and (2, 1/2) in epoch 3
    epochs = [
        (0, [[1.0, 4.0], [3.0, 4.0]]),
        (1, [[1.0, 3.0], [1.0, 4.0], [1.0, 5.0]]),
        (2, [[2.0, 2.0], [2.0, 2.0]]),
        (3, [[9.0, 9.0]]),
    ]
    found = run(DWA(temperature=2.0), epochs)
    assert found[:5] == [[1.0, 1.0]] * 5
    second, third = softmax(1 / 4, 1 / 2), softmax(1, 1 / 4)
    np.testing.assert_allclose(found[5:], [second, second, third], rtol=2**-23)


def test_epochs_need_not_start_at_zero_nor_be_consecutive():
    losses = [[[2.0, 4.0]], [[1.0, 4.0]], [[1.0, 1.0]]]
    expected = run(DWA(), list(zip((0, 1, 2), losses, strict=True)))
    assert run(DWA(), list(zip((5, 7, 8), losses, strict=True))) == expected
    assert expected[2] != [1.0, 1.0]


def test_without_epochs_weights_stay_one():
    assert run(DWA(), [(0, [[1.0, 2.0], [0.5, 2.0], [0.1, 2.0]])]) == [[1.0, 1.0]] * 3


def test_losses_that_are_not_finite_are_not_counted():
    with_bad = [
        (0, [[2.0, 4.0], [math.nan, 4.0]]),
        (1, [[1.0, math.inf], [1.0, 4.0]]),
        (2, [[1.0, 1.0]]),
    ]
    without = [(0, [[2.0, 4.0]]), (1, [[1.0, 4.0]]), (2, [[1.0, 1.0]])]
    assert run(DWA(), with_bad)[-1] == run(DWA(), without)[-1]


def test_an_epoch_without_a_finite_loss_gives_weights_of_one():
    epochs = [(0, [[2.0, 4.0]]), (1, [[1.0, math.nan]]), (2, [[1.0, 1.0]]), (3, [[1.0, 1.0]])]
    assert run(DWA(), epochs)[2:] == [[1.0, 1.0]] * 2


def test_an_epoch_that_begins_before_the_step_does_not_count_it():
    model, optimizer = setup(DWA())
    optimizer.backward(losses_of(model, *networks.batch(("audio", "visual"))))
    optimizer.modulator.set_epoch(1)
    optimizer.step()
    assert optimizer.modulator.state.epoch.item() == 0
