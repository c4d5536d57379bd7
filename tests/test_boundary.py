"""Weights at the boundary of the encoders: as at the parameters, and what cannot be known there."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from test_modulator import TWO, setup, train_step

from modgrad import OGM, FixedWeights, Modalities, ModulatedOptimizer


def test_boundary_equals_parameters(device):
    """Weights are powers of two, so that the order of scaling cannot show in the rounding."""

    class PowerOfTwo(OGM):
        def update(self, statistics, state):
            modulation, state = super().update(statistics, state)
            return modulation._replace(weights=modulation.weights.log2().round().exp2()), state

    model, at_parameters = setup(TWO, PowerOfTwo(0.8), device)
    twin = copy.deepcopy(model)
    at_boundary = ModulatedOptimizer(
        torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9),
        Modalities(twin, **twin.specs()),
        PowerOfTwo(0.8),
        at="boundary",
    )
    for _ in range(5):
        inputs, targets = networks.batch(TWO, device=device)
        train_step(model, at_parameters, inputs, targets)
        features = {m: encoder(inputs[m]) for m, encoder in twin.encoders.items()}
        features = at_boundary.modulator.scale_backward(features)
        output = twin.head(torch.cat(list(features.values()), dim=1))
        at_boundary.observe(features=features, head=twin.head, targets=targets)
        at_boundary.zero_grad()
        F.cross_entropy(output, targets).backward()
        at_boundary.step()
        assert torch.equal(at_parameters.modulator.last.weights, at_boundary.modulator.last.weights)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_boundary_refuses_what_it_cannot_do():
    class NeedsNorms(FixedWeights):
        needs = frozenset({"grad_sq_norms"})

    with pytest.raises(ValueError, match=r"\['grad_sq_norms'\] are known after backward only"):
        setup(TWO, NeedsNorms({}), at="boundary")

    class Unforeseen(OGM):
        adds_noise = False

        def modulation(self, weights):
            return super().modulation(weights)._replace(noise=torch.ones(2))

    model, optimizer = setup(TWO, Unforeseen(0.3), at="boundary")
    inputs, targets = networks.batch(TWO)
    with pytest.raises(ValueError, match="GE noise needs the gradients"):
        train_step(model, optimizer, inputs, targets)
    model, optimizer = setup(TWO, OGM(0.3), at="boundary")
    with pytest.raises(RuntimeError, match=r"`scale_backward` was not called"):
        train_step(model, optimizer, inputs, targets)
    with pytest.raises(ValueError, match="`at` is 'somewhere'"):
        setup(at="somewhere")


def test_to_observe_after_backward_is_too_late_at_the_boundary():
    model, optimizer = setup(TWO, OGM(0.3), at="boundary")

    def forward():
        inputs, targets = networks.batch(TWO)
        features = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
        features = optimizer.modulator.scale_backward(features)
        output = model.head(torch.cat(list(features.values()), dim=1))
        seen = {"features": features, "head": model.head, "targets": targets}
        return F.cross_entropy(output, targets), seen

    for _ in range(2):  # batches of one step
        loss, seen = forward()
        optimizer.observe(**seen)
        loss.backward()
    optimizer.step()
    loss, seen = forward()
    loss.backward()
    with pytest.raises(RuntimeError, match="`observe` comes after backward"):
        optimizer.observe(**seen)
