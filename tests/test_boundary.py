"""Weights at the boundary of the encoders: as at the parameters, and what cannot be known there."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from test_modulator import TWO, setup, train_step
from torch import nn

from modgrad import OGM, Between, FixedWeights, Modalities, ModulatedOptimizer, Smoothed


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


class LateFusion(nn.Module):
    """Two encoders, the boundary, and a head on what they give."""

    def __init__(self):
        super().__init__()
        self.audio, self.visual = nn.Linear(4, 5), nn.Linear(3, 5)
        self.head = nn.Linear(10, 3)

    def forward(self, modulator, audio, visual):
        features = {"audio": self.audio(audio), "visual": self.visual(visual)}
        features = modulator.scale_backward(features)
        return features, self.head(torch.cat(list(features.values()), 1))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_forward_reads_the_weights_that_observe_fills(device, compiler):
    eager = LateFusion().to(device)
    found = []
    for model in (eager, copy.deepcopy(eager)):
        modalities = Modalities(model, audio="audio", visual="visual")
        inner = torch.optim.SGD(model.parameters(), lr=0.5)
        optimizer = ModulatedOptimizer(inner, modalities, OGM(0.8), at="boundary")
        forward = model
        if model is not eager:
            forward = torch.compile(model, backend=compiler, fullgraph=True)
        torch.manual_seed(0)
        for _ in range(4):
            inputs = torch.randn(8, 4, device=device), torch.randn(8, 3, device=device)
            targets = torch.randint(0, 3, (8,), device=device)
            features, output = forward(optimizer.modulator, *inputs)
            optimizer.observe(features=features, head=model.head, targets=targets)
            optimizer.zero_grad()
            F.cross_entropy(output, targets).backward()
            optimizer.step()
        found.append([optimizer.modulator.last.weights, *model.parameters()])
    assert (found[0][0] < 1).any()
    # four steps of some ten roundings each, of numbers near 1
    torch.testing.assert_close(*found, rtol=0, atol=40 * torch.finfo(torch.float32).eps)


def steps_at(at, scales, model, balancer, device):
    """The weights and the parameters after every step."""
    modalities = Modalities(model, audio="audio", visual="visual")
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = ModulatedOptimizer(inner, modalities, balancer, at=at)
    inputs = torch.randn(8, 4, device=device), torch.randn(8, 3, device=device)
    for number in range(5):
        optimizer.modulator.set_epoch(number)
        features = {"audio": model.audio(inputs[0]), "visual": model.visual(inputs[1])}
        if scales:
            features = optimizer.modulator.scale_backward(features)
        optimizer.zero_grad()
        model.head(torch.cat(list(features.values()), 1)).sum().backward()
        optimizer.step()
        yield optimizer.modulator.last.weights, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "balancer",
    [
        FixedWeights({"audio": 0.5, "visual": 2.0}),
        Between(FixedWeights({"audio": 0.5}), 1, 3),
        Between(FixedWeights({"audio": 0.5}), 1, 2, unit="epoch"),
        Smoothed(FixedWeights({"audio": 0.5}), 0.5),
    ],
    ids=["fixed", "steps", "epochs", "state"],
)
def test_weights_of_nothing_observed_act_once(device, balancer):
    """They are known before forward."""
    first, found = LateFusion().to(device), []
    for at, scales in (("parameters", False), ("parameters", True), ("boundary", True)):
        torch.manual_seed(0)
        found.append(list(steps_at(at, scales, copy.deepcopy(first), balancer, device)))
    for (weights, params), *others in zip(*found, strict=True):
        for same, close in others:
            assert torch.equal(weights, same)
            # sums of 8 products below 8, scaled before they are formed or after, in five steps
            torch.testing.assert_close(params, close, rtol=0, atol=2e-5)


def test_boundary_refuses_what_it_cannot_do():
    class NeedsNorms(FixedWeights):
        needs = frozenset({"grad_sq_norms"})

    with pytest.raises(ValueError, match=r"\['grad_sq_norms'\] are known after backward only"):
        setup(TWO, NeedsNorms({}), at="boundary")

    with pytest.raises(ValueError, match=r"\['param_sq_norms'\] are known after backward only"):
        setup(TWO, OGM(0.3), at="boundary", record=("param_sq_norms",))

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
