"""Where it is as the ordinary backward: it accumulates, adds up, and each gradient stands alone."""

import copy

import networks
import pytest
import torch
from test_backward import TWO, Given, losses_of, names, setup

from modgrad import Modalities, ModulatedOptimizer


def test_gradients_accumulate_as_with_backward(device):
    model, optimizer = setup(Given(((0.5, 1.0, 1.0), (1.0, 1.0, 2.0))), device=device)
    inputs, targets = networks.batch(TWO, device=device)
    optimizer.backward(losses_of(model, inputs, targets))
    once = [p.grad.clone() for p in model.parameters()]
    optimizer.backward(losses_of(model, inputs, targets))
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_disabled_is_the_plain_sum():
    model, optimizer = setup(Given(((0.0,),)))
    optimizer.modulator.enabled = False
    inputs, targets = networks.batch(TWO)
    twin = copy.deepcopy(model)
    sum(losses_of(twin, inputs, targets).values()).backward()
    optimizer.backward(losses_of(model, inputs, targets))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


class Tables(torch.nn.Module):
    """Encoders and a head with sums of parameters: autograd gives terms of a sum one gradient."""

    def __init__(self):
        super().__init__()
        self.encoders = torch.nn.ModuleDict({m: torch.nn.Linear(4, 3) for m in TWO})
        for encoder in self.encoders.values():
            encoder.extra = torch.nn.Parameter(torch.randn(3))
        self.position, self.kind = (torch.nn.Parameter(torch.randn(2, 3)) for _ in range(2))
        self.level = torch.nn.Parameter(torch.randn(2, 3))

    def losses(self, x):
        features = [e(x) + e.extra for e in self.encoders.values()]
        fused = torch.stack(features, 1) + (self.position + self.kind) + self.level.sum()
        own = dict(zip(TWO, (f.square().mean() for f in features), strict=True))
        return {"joint": fused.tanh().square().mean(), **own}


METHODS = {
    "matrix": Given(((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), frozenset({"gram"})),
    "matrix known before": Given(((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))),
    "whole losses": Given((1.0, 1.0, 1.0)),
}


# At most 5 samples x 6 features x 3 losses x 2 batches = 180 float64 terms, each below 10 and known
# to a rounding, added in two orders: 2 * 180 * 10 * 2^-53 = 4e-13.
OTHER_ORDER = 4e-13


def with_tables(method):
    model = Tables().double()
    optimizer = ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        Modalities(model, **{m: f"encoders.{m}" for m in TWO}),
        METHODS[method],
        losses=names(TWO),
    )
    return model, optimizer


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_has_a_gradient_of_its_own(method):
    model, optimizer = with_tables(method)
    twin = copy.deepcopy(model)
    for _ in range(2):
        x = torch.randn(5, 4, dtype=torch.float64)
        optimizer.backward(model.losses(x))
        sum(twin.losses(x).values()).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=OTHER_ORDER)
        assert p.grad.stride() == p.stride()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_encoders_leave_an_ordinary_backward(method):
    model, optimizer = with_tables(method)
    twin = copy.deepcopy(model)
    for net in (model, twin):
        net.encoders.requires_grad_(False)
    x = torch.randn(5, 4, dtype=torch.float64)

    def losses(net):
        return {name: value + 0 * net.level.sum() for name, value in net.losses(x).items()}

    optimizer.backward(losses(model))
    sum(losses(twin).values()).backward()
    optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=OTHER_ORDER)
    model.encoders.requires_grad_(True)
    optimizer.zero_grad()
    sum(losses(model).values()).backward()
    with pytest.raises(RuntimeError, match=r"call backward\("):
        optimizer.step()
