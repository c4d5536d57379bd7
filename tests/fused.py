"""Optimizers whose steps are fused, beside the same ones with modulated gradients."""

import copy

import networks
import torch
import torch.nn.functional as F

from modgrad import FixedWeights, Modalities, ModulatedOptimizer

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
TWO = ("audio", "visual")
UNEVEN = FixedWeights({"audio": 0.3, "visual": 1.7})

INNER = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD decay": lambda p: SGD(p, lr=0.1, weight_decay=0.01, maximize=True),
    "SGD momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5, maximize=True),
    "SGD fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "Adam amsgrad": lambda p: Adam(p, lr=0.01, betas=(0.8, 0.99), amsgrad=True, maximize=True),
    "AdamW": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "AdamW fused": lambda p: AdamW(p, lr=0.01, eps=1e-6, amsgrad=True, fused=True),
    "AdamW tensor lr": lambda p: AdamW(p, lr=torch.tensor(0.01), fused=True),
}


def wrap(model, inner, balancer=UNEVEN, **options):
    modalities = Modalities(model, **model.specs())
    return ModulatedOptimizer(inner(model.parameters()), modalities, balancer, **options)


def pair(inner, device="cpu", balancer=UNEVEN, dtype=torch.float32, **options):
    """The same network twice: with the fused step, and with modulated gradients."""
    model = networks.LateFusion().to(device, dtype)
    twin = copy.deepcopy(model)
    fused, unfused = (
        wrap(model, inner, balancer, **options),
        wrap(twin, inner, balancer, fused=False),
    )
    assert fused.fused
    assert not unfused.fused
    return (model, fused), (twin, unfused)


def backward(model, optimizer, inputs, targets, scaled=lambda loss: loss):
    features, output = model(inputs)
    optimizer.observe(features=features, head=model.head, targets=targets)
    optimizer.zero_grad()
    scaled(F.cross_entropy(output, targets)).backward()


def train(
    sides, steps, between=lambda i, model, optimizer: None, device="cpu", dtype=torch.float32
):
    for i in range(steps):
        batch = networks.batch(TWO, device=device, dtype=dtype)
        for model, optimizer in sides:
            backward(model, optimizer, *batch)
            between(i, model, optimizer)
            optimizer.step()


def assert_equal(sides, steps, ulps=64):
    """Each step rounds an element's handful of operations in another order, so an update differs by
    a few eps of it; gradients of the next step carry that on, ``ulps`` in all for each step."""
    (model, fused), (twin, unfused) = sides
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        bound = ulps * steps * torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)
        found, expected = fused.state[a], unfused.state[b]
        assert found.keys() == expected.keys()
        for key in found:
            assert found[key].dtype == expected[key].dtype
            torch.testing.assert_close(found[key], expected[key], rtol=bound, atol=bound)


def values(model, optimizer):
    """Everything that a step changes."""
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_same([*a.values()], [*b.values()])
    elif isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b
