"""modgrad.GradScaler does what torch's does, with one read of the gradients."""

import copy
import math
import weakref

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops
from fused import INNER, TWO, assert_same, backward, pair, values, wrap

import modgrad
from modgrad import OGM, EqualNorms

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
    assert named_ops(scaler, optimizer) == ["group_sq_norms", "modulated_adam_"]
    assert [p.grad._version for p in model.parameters()] == versions


def named_ops(scaler, optimizer):
    with Ops() as ops:
        scaler.step(optimizer)
    return ops.own


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_norms_of_the_check_decide(name):
    (model, optimizer), _ = pair(INNER[name], balancer=EqualNorms())
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    other = wrap(twin, INNER[name], balancer=EqualNorms())
    scalers = [kind("cpu", init_scale=1024.0, growth_interval=2) for kind in KINDS]
    for factor in (1.0, math.inf, 0.5, 2.0):
        batch = networks.batch(TWO)
        called = []
        for scaler, net, o in zip(scalers, (model, twin), (optimizer, other), strict=True):
            backward(net, o, *batch, lambda x: scaler.scale(x * factor))  # noqa: B023
            called.append(named_ops(scaler, o))
            scaler.update()
        update = "modulated_sgd_" if name == "SGD momentum" else "modulated_adam_"
        assert called == [["group_sq_norms", "rule_weights", update], [update]]
        assert_same(values(model, optimizer), values(twin, other))
    ours, theirs = optimizer.modulator.last, other.modulator.last
    assert (ours.weights != 1).all()
    # fewer than 500 squares in float64, added in another order: 500 * 2^-53 = 6e-14
    torch.testing.assert_close(ours.grad_sq_norms, theirs.grad_sq_norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_gradients_that_change_after_the_check_are_measured_anew(change):
    (model, optimizer), _ = pair(INNER["SGD"], balancer=EqualNorms())
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), scaler.scale)
    weight = next(model.parameters())

    def hook(*_):
        if change == "in place":
            weight.grad.mul_(3.0)
        else:
            weight.grad = weight.grad * 3.0

    optimizer.register_step_pre_hook(hook)
    assert named_ops(scaler, optimizer) == ["group_sq_norms", "modulated_sgd_"]
    owner = optimizer.modulator.owner
    i = owner[0]
    own = [p.grad for p, m in zip(model.parameters(), owner, strict=True) if m == i]
    expected = sum((g.double() / 8).square().sum() for g in own)
    torch.testing.assert_close(optimizer.modulator.last.grad_sq_norms[i], expected)


def test_gradients_are_not_held_after_the_step():
    (model, optimizer), _ = pair(INNER["SGD"], balancer=EqualNorms())
    for enabled in (True, False):
        optimizer.modulator.enabled = enabled
        scaler = modgrad.GradScaler("cpu", init_scale=8.0)
        backward(model, optimizer, *networks.batch(TWO), scaler.scale)
        scaler.step(optimizer)
        grads = [weakref.ref(p.grad) for p in model.parameters()]
        optimizer.zero_grad()
        assert [ref() for ref in grads] == [None] * len(grads)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["first", "middle", "last", "tail", "misaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_infinity_is_found(place, value, dtype, device):
    sizes = [3, 40001, 17]
    model = torch.nn.ParameterList([torch.zeros(n, dtype=dtype) for n in sizes]).to(device)
    optimizer = modgrad.ModulatedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        modgrad.Modalities(model, one="0", two="1"),
        modgrad.FixedWeights({}),
    )
    for p in model:
        p.grad = torch.randn_like(p)
    if place == "misaligned":
        model[1].grad = torch.randn(40002, dtype=dtype, device=device)[1:]
    t, i = {"first": (0, 0), "middle": (1, 20000), "last": (2, 16), "tail": (1, -1)}.get(
        place, (1, 5)
    )
    largest = torch.finfo(dtype).max  # its square is no float32
    model[1].grad[7] = largest
    scaler = modgrad.GradScaler(device, init_scale=1.0)
    scaler.scale(torch.zeros(1, device=device))
    assert float(*scaler._check_inf_per_device(optimizer).values()) == 0
    model[t].grad[i] = value
    assert float(*scaler._check_inf_per_device(optimizer).values()) == 1


def test_a_default_dtype_of_float64():
    torch.set_default_dtype(torch.float64)
    try:
        (model, optimizer), _ = pair(INNER["AdamW"], dtype=torch.float64)
        scaler = modgrad.GradScaler("cpu", init_scale=8.0)
        batch = networks.batch(TWO, dtype=torch.float64)
        before = model.head.weight.detach().clone()
        backward(model, optimizer, *batch, scaler.scale)
        scaler.step(optimizer)
        assert not torch.equal(model.head.weight, before)
    finally:
        torch.set_default_dtype(torch.float32)


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


@pytest.mark.parametrize("fused", [True, False])
def test_scores_of_a_skipped_batch_are_gone(fused):
    (model, optimizer), (twin, unfused) = pair(INNER["AdamW"], balancer=OGM(0.5))
    model, optimizer = (model, optimizer) if fused else (twin, unfused)
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), lambda x: scaler.scale(x * math.inf))
    scaler.step(optimizer)
    scaler.update()
    with pytest.raises(RuntimeError, match="call observe"):
        optimizer.step()


def test_scores_of_a_skipped_batch_are_gone_from_what_is_attached():
    model = networks.LateFusion()
    inner = torch.optim.RMSprop(model.parameters(), lr=0.01)
    modulator = modgrad.attach(inner, modgrad.Modalities(model, **model.specs()), OGM(0.5))
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    for factor in (math.inf, 1.0):
        inputs, targets = networks.batch(TWO)
        features, output = model(inputs)
        logits = list(modgrad.late_fusion_logits(features, model.head).values())
        own = modgrad.modality_scores(logits, targets)
        modulator.observe(scores=own)
        inner.zero_grad()
        scaler.scale(F.cross_entropy(output, targets) * factor).backward()
        scaler.step(inner)
        scaler.update()
    assert torch.equal(modulator.last.scores, own)
    plain = torch.optim.RMSprop(model.parameters(), lr=0.01)
    scaler.step(plain)  # one that nothing modulates is torch's


def test_nothing_is_read_on_the_host_before_the_update():
    (model, optimizer), _ = pair(INNER["AdamW"])
    scaler = modgrad.GradScaler("cpu", init_scale=8.0)
    backward(model, optimizer, *networks.batch(TWO), scaler.scale)
    with Ops() as ops:
        scaler.step(optimizer)
    assert ops.reads == 0


def test_momentum_without_dampening():
    """RMSprop's groups have the one and not the other."""
    model = networks.LateFusion()
    twin = copy.deepcopy(model)
    optimizer, plain = (
        wrap(net, lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9)) for net in (model, twin)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    batch = networks.batch(TWO)
    backward(model, optimizer, *batch, scaler.scale)
    backward(twin, plain, *batch)
    scaler.step(optimizer)
    plain.step()
    assert_same(values(model, optimizer), values(twin, plain))
