"""The fused step is the step: the same numbers, in every situation that a loop brings."""

import copy
import warnings

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops
from fused import (
    INNER,
    SGD,
    TWO,
    UNEVEN,
    Adam,
    AdamW,
    assert_equal,
    assert_same,
    backward,
    pair,
    train,
    values,
    wrap,
)
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from modgrad import OGM, Modalities, ModulatedOptimizer


@pytest.mark.parametrize("name", INNER)
def test_ten_steps_equal_modulated_gradients(backend, device, name):
    sides = pair(INNER[name], device, backend=backend)
    train(sides, 10, device=device)
    assert_equal(sides, 10)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_scores_and_noise(backend, device, name):
    """The noise of both paths is the same: streams are numbered alike."""
    sides = pair(INNER[name], device, OGM(0.5, noise=0.1), backend=backend)
    held = sides[0][1].optimizer.param_groups[0]["params"]
    assert held  # the head, shared, is last: numbers would agree without it
    train(sides, 3, device=device)
    assert_equal(sides, 3, ulps=2**14 if name == "AdamW" else 2**8)  # noise itself is float32


@pytest.mark.parametrize("inner", [SGD, Adam, AdamW])
def test_apply_to_the_update_is_a_learning_rate_per_modality(backend, device, inner):
    model = networks.LateFusion().to(device)
    twin = copy.deepcopy(model)
    make = lambda p: inner(p, lr=0.01, weight_decay=0.1)  # noqa: E731
    optimizer = wrap(model, make, backend=backend, apply="update")
    plain = inner(
        [
            {"params": twin.encoders["audio"].parameters(), "lr": 0.01 * 0.3},
            {"params": twin.encoders["visual"].parameters(), "lr": 0.01 * 1.7},
            {"params": twin.head.parameters()},
        ],
        lr=0.01,
        weight_decay=0.1,
    )
    for _ in range(10):
        inputs, targets = networks.batch(TWO, device=device)
        backward(model, optimizer, inputs, targets)
        optimizer.step()
        plain.zero_grad()
        F.cross_entropy(twin(inputs)[1], targets).backward()
        plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=64 * 10 * torch.finfo(a.dtype).eps)


def test_gradients_stay_as_they_are():
    (model, optimizer), _ = pair(INNER["AdamW"])
    backward(model, optimizer, *networks.batch(TWO))
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert_same([p.grad for p in model.parameters()], before)


@pytest.mark.parametrize("name", ["SGD momentum", "SGD dampening", "Adam", "AdamW fused"])
def test_schedules_and_gradients_that_come_and_go(name):
    """Options change, groups differ, a modality is missing, parameters freeze and thaw."""
    schedules = {}

    def between(i, model, optimizer):
        if optimizer not in schedules:
            group = {"max_lr": 0.1, "total_steps": 20, "cycle_momentum": True}
            schedules[optimizer] = OneCycleLR(optimizer, **group)
        optimizer.param_groups[0]["weight_decay"] = 0.01 * i
        if i in (0, 3):
            for p in model.encoders["audio"].parameters():
                p.grad = None
        model.encoders["visual"][0].requires_grad_(i != 5)
        if i > 0:
            schedules[optimizer].step()

    sides = pair(INNER[name])
    train(sides, 8, between)
    assert_equal(sides, 8)


def test_a_scheduler_of_the_inner_optimizer_sees_its_steps():
    (model, optimizer), _ = pair(INNER["SGD"])
    schedule = StepLR(optimizer.optimizer, 1)
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()


def test_momentum_that_a_schedule_ends():
    def between(i, model, optimizer):
        optimizer.param_groups[0]["momentum"] = 0.9 if i % 3 else 0.0

    sides = pair(INNER["SGD nesterov"])
    train(sides, 7, between)
    assert_equal(sides, 7)


@pytest.mark.parametrize("inner", [SGD, Adam])
def test_groups_with_options_of_their_own(inner):
    def grouped(parameters):
        a, b, *rest = parameters
        extra = {"momentum": 0.9} if inner is SGD else {"amsgrad": True}
        return inner([{"params": [a], "lr": 1e-3}, {"params": [b], **extra}, {"params": rest}], 0.1)

    sides = pair(grouped)
    train(sides, 2)
    for _, optimizer in sides:  # as freezing schedules do
        late = optimizer.param_groups[2]["params"].pop()
        optimizer.add_param_group({"params": [late], "lr": 0.02, "weight_decay": 0.1})
    train(sides, 3)
    assert_equal(sides, 5)


@pytest.mark.parametrize("at", ["parameters", "boundary"])
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_nothing_is_read_on_the_host_in_a_step(backend, device, at, name):
    balancer = OGM(0.3, noise=0.0 if at == "boundary" else 1.0)
    model = networks.LateFusion().to(device)
    optimizer = wrap(model, INNER[name], balancer, at=at, backend=backend)
    inputs, targets = networks.batch(TWO, device=device)
    features = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
    if at == "boundary":
        features = optimizer.modulator.scale_backward(features)
    output = model.head(torch.cat(list(features.values()), dim=1))
    loss = F.cross_entropy(output, targets)
    optimizer.found_inf = torch.zeros((), device=device)
    with Ops() as ops:
        optimizer.observe(features=features, head=model.head, targets=targets)
        loss.backward()
        optimizer.step()
    assert ops.reads == 0


def test_weights_applied_in_backward_are_not_applied_again():
    model = networks.LateFusion()
    twin = copy.deepcopy(model)
    inputs, targets = networks.batch(TWO)
    for m, fused in ((model, None), (twin, False)):
        optimizer = wrap(m, INNER["SGD"], losses=("joint", "late"), fused=fused)
        assert optimizer.fused == (fused is None)
        output = m(inputs)[1]
        optimizer.backward(
            {"joint": F.cross_entropy(output, targets), "late": output.square().mean()}
        )
        optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_disabled_is_the_plain_step():
    (model, optimizer), _ = pair(INNER["AdamW"])
    twin = copy.deepcopy(model)
    plain = INNER["AdamW"](twin.parameters())
    optimizer.modulator.enabled = False
    inputs, targets = networks.batch(TWO)
    backward(model, optimizer, inputs, targets)
    optimizer.step()
    F.cross_entropy(twin(inputs)[1], targets).backward()
    plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert optimizer.modulator.state_dict()["step"] == 0


def test_hooks_get_what_the_plain_step_gives_them():
    (model, optimizer), _ = pair(INNER["SGD"])
    plain = INNER["SGD"](copy.deepcopy(model).parameters())
    seen = []

    def hook(when):
        return lambda o, args, kwargs: seen.append((when, o is args[0], args[1:], kwargs))

    def closure():
        seen.append("closure")
        assert torch.is_grad_enabled()
        return 5.0

    for o in (plain, optimizer):
        o.register_step_post_hook(hook("post"))
        o.register_step_pre_hook(hook("pre"))
        assert o.step(closure) == 5.0
        assert o.step() is None
    half = len(seen) // 2
    assert [x if x == "closure" else x[0] for x in seen[:half]] == [
        *("pre", "closure", "post"),
        *("pre", "post"),
    ]
    for a, b in zip(seen[:half], seen[half:], strict=True):
        assert a[:2] == b[:2]
        assert a == "closure" or (len(a[2]) == len(b[2]) and a[3] == b[3])


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "AdamW fused"])
def test_dtypes(name, device):
    """Of parameters: two in one optimizer group. By default: torch counts Adam's steps in it."""

    def between(i, model, optimizer):
        for p in model.encoders["audio"].parameters():
            assert p.dtype == torch.bfloat16

    class Mixed(networks.LateFusion):
        def forward(self, inputs):
            features = {
                m: encoder(inputs[m].to(encoder[0].weight.dtype)).float()
                for m, encoder in self.encoders.items()
            }
            return features, self.head(torch.cat(list(features.values()), dim=1))

    model = Mixed().to(device)
    model.encoders["audio"].bfloat16()
    twin = copy.deepcopy(model)
    sides = ((model, wrap(model, INNER[name])), (twin, wrap(twin, INNER[name], fused=False)))
    train(sides, 1, between, device)
    assert sides[0][1].fused
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        # after one step, a rounding of the scaled gradient and one of the parameter
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(a.dtype).eps, atol=1e-3)
    try:
        torch.set_default_dtype(torch.float64)
        sides = pair(INNER[name], device, dtype=torch.float64)
        train(sides, 3, device=device, dtype=torch.float64)
        for a, b in zip(sides[0][0].parameters(), sides[1][0].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # weights are float32
    finally:
        torch.set_default_dtype(torch.float32)


# Not AdamW fused: torch's takes gradients in another memory order than the parameter's for its own.
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_channels_last_and_other_devices(name):
    """Shared parameters elsewhere are a part of their own."""
    torch.manual_seed(1)
    convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model = torch.nn.ModuleDict({"audio": convolution, "visual": torch.nn.Linear(2, 2)})
    twin = copy.deepcopy(model)
    elsewhere = torch.nn.Parameter(torch.empty(3, device="meta"))
    elsewhere.grad = torch.empty(3, device="meta")
    gradients = [torch.randn(p.shape) for p in model.parameters()]  # contiguous
    more = [elsewhere] if "SGD" in name else []  # Adam of torch does not know the device
    for m, extra, fused in ((model, more, True), (twin, [], False)):
        modalities = Modalities(m, audio="audio", visual="visual")
        inner = INNER[name]([*m.parameters(), *extra])
        optimizer = ModulatedOptimizer(inner, modalities, UNEVEN, fused=fused)
        for _ in range(3):
            for p, grad in zip(m.parameters(), gradients, strict=True):
                p.grad = grad.clone()
            optimizer.step()
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_a_compiled_step_is_the_fused_one(name):
    (model, optimizer), _ = pair(INNER[name])
    twin = copy.deepcopy(model)
    eager = wrap(twin, INNER[name])
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(3):
        batch = networks.batch(TWO)
        for net, each, run in ((model, optimizer, step), (twin, eager, eager.step)):
            backward(net, each, *batch)
            run()
    assert_same(values(model, optimizer), values(twin, eager))
