"""modgrad.GradScaler does what torch's does, with one read of the gradients."""

import math

import networks
import pytest
import torch
from test_fused import INNER, TWO, assert_same, backward, pair, values, wrap
from test_modulator import host_reads
from test_rules import Ops

import modgrad
from modgrad import OGM

NAMES = ["SGD momentum", "SGD dampening", "AdamW", "AdamW fused"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unscale", [False, True])
def test_same_scales_and_same_parameters(name, unscale):
    (model, ours), _ = pair(INNER[name])
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    theirs = wrap(twin, INNER[name])
    scalers = [kind("cpu", init_scale=256.0, growth_interval=2) for kind in KINDS]
    for factor in (1.0, math.inf, 1.0, 1.0, math.nan, 2.0):
        batch = networks.batch(TWO)
        for scaler, net, optimizer in zip(scalers, (model, twin), (ours, theirs), strict=True):
            backward(net, optimizer, *batch, lambda x: scaler.scale(x * factor))  # noqa: B023
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert_same(scalers[0].state_dict(), scalers[1].state_dict())
        assert_same(values(model, ours), values(twin, theirs))


KINDS = modgrad.GradScaler, torch.amp.GradScaler


def test_gradients_are_read_once_and_not_written():
    (model, optimizer), _ = pair(INNER["AdamW"])
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), scaler.scale)
    versions = [p.grad._version for p in model.parameters()]
    with Ops() as ops:
        scaler.step(optimizer)
    assert [p.grad._version for p in model.parameters()] == versions
    assert not [name for name in ops.names if "_amp_foreach" in name]
    ours = [name.split(".")[1] for name in ops.names if name.startswith("modgrad_")]
    assert ours == ["group_sq_norms", "modulated_adam_"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["first", "middle", "last", "tail", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_infinity_is_found(place, value, dtype):
    sizes = [3, 40001, 17]
    model = torch.nn.ParameterList([torch.zeros(n, dtype=dtype) for n in sizes])
    optimizer = modgrad.ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        modgrad.Modalities(model, one="0", two="1"),
        modgrad.FixedWeights({}),
    )
    for p in model:
        p.grad = torch.randn_like(p)
    if place == "misaligned":
        model[1].grad = torch.randn(40002, dtype=dtype)[1:]
    t, i = {"first": (0, 0), "middle": (1, 20000), "last": (2, 16), "tail": (1, -1)}.get(
        place, (1, 5)
    )
    largest = torch.finfo(dtype).max  # its square is no float32
    model[1].grad[7] = largest
    scaler = modgrad.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(1))
    assert float(*scaler._check_inf_per_device(optimizer).values()) == 0
    model[t].grad[i] = value
    assert float(*scaler._check_inf_per_device(optimizer).values()) == 1


def test_other_optimizers_are_torchs_business():
    (model, unfused) = pair(INNER["SGD"])[1]
    scaler = modgrad.GradScaler("cpu", init_scale=4.0)
    for optimizer in (unfused, torch.optim.SGD(model.parameters(), lr=0.1)):
        before = model.head.weight.detach().clone()
        loss = model(networks.batch(TWO)[0])[1].square().sum()
        scaler.scale(loss).backward()
        model.head.weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.head.weight, before)
        optimizer.zero_grad()
    assert scaler.get_scale() == 1.0


def test_scores_of_a_skipped_batch_are_gone():
    (model, optimizer), _ = pair(INNER["AdamW"], balancer=OGM(0.5))
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), lambda x: scaler.scale(x * math.inf))
    scaler.step(optimizer)
    scaler.update()
    with pytest.raises(RuntimeError, match="call observe"):
        optimizer.step()


def test_nothing_is_read_on_the_host_before_the_update():
    (model, optimizer), _ = pair(INNER["AdamW"])
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), scaler.scale)
    with host_reads() as count:
        scaler.step(optimizer)
    assert count.reads == 0
