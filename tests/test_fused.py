"""The fused step is the step: on torch's own states, in every situation that a loop brings."""

import copy
import io
import math
import pickle
import warnings

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from modgrad import OGM, FixedWeights, Modalities, ModulatedOptimizer
from modgrad.backends import BACKENDS

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


@pytest.fixture(autouse=True)
def has_updates(request):
    """A backend may have the other ops only."""
    if "backend" in request.fixturenames:
        backend = BACKENDS[request.getfixturevalue("backend")]
        if not hasattr(backend, "modulated_adam_"):
            pytest.skip("the backend has no fused updates")


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


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "AdamW fused"])
def test_checkpoints_go_to_the_plain_optimizer_and_back(name):
    sides = pair(INNER[name])
    train(sides, 2)
    for model, optimizer in sides:
        plain = INNER[name](model.parameters())
        plain.load_state_dict(optimizer.state_dict())
        backward(model, optimizer, *networks.batch(TWO))
        plain.step()
        file = io.BytesIO()
        torch.save(plain.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        torch.manual_seed(0)
    (model, fused), (twin, unfused) = sides
    twin.load_state_dict(model.state_dict())
    unfused.load_state_dict(copy.deepcopy(fused.state_dict()))
    train(sides, 3)
    assert_equal(sides, 3)


def test_adam_decays_as_a_checkpoint_of_adamw_says():
    sides = pair(INNER["Adam"])
    for model, optimizer in sides:
        optimizer.load_state_dict(AdamW(model.parameters(), weight_decay=0.5).state_dict())
    train(sides, 3)
    assert_equal(sides, 3)


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW"])
def test_states_put_back_or_moved_are_seen(name):
    """As offloading does between steps, and what tries out a step and undoes it."""

    def between(i, model, optimizer):
        state = optimizer.state
        if i == 2:
            kept = {p: copy.deepcopy(held) for p, held in state.items()}
            optimizer.modulator.enabled = False
            optimizer.step()
            optimizer.modulator.enabled = True
            state.clear()
            state.update(kept)
        if i == 4:
            for held in state.values():
                for key, value in held.items():
                    held[key] = value.clone()

    sides = pair(INNER[name])
    train(sides, 6, between)
    assert_equal(sides, 6)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_step_their_own_states(duplicate):
    (model, optimizer), _ = pair(INNER["AdamW"], apply="update")
    train([(model, optimizer)], 2)
    twin, other = duplicate((model, optimizer))
    assert other.fused
    before = values(twin, other)
    train([(model, optimizer)], 1)
    assert_same(values(twin, other), before)
    assert not torch.equal(model.head.weight, twin.head.weight)


@pytest.mark.parametrize("name", ["SGD momentum", "SGD dampening", "AdamW", "AdamW fused"])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(name, unscale):
    announced = name != "SGD dampening"
    # a step that the scaler skips by itself leaves the scores of its batch to the next
    (model, optimizer), (twin, unfused) = sides = pair(
        INNER[name], balancer=OGM(0.5) if announced else UNEVEN, record=["grad_sq_norms"]
    )
    assert optimizer._step_supports_amp_scaling == announced
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (math.inf, 1.0, math.nan, 1.0, 2.0):
        batch, before = networks.batch(TWO), values(model, optimizer)
        backward(model, optimizer, *batch, lambda x: scaler.scale(x * factor))  # noqa: B023
        norm = sum(p.grad.double().square().sum() for p in model.encoders["audio"].parameters())
        norm = norm / scaler.get_scale() ** 2
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        if math.isfinite(factor):
            backward(twin, unfused, *batch, lambda x: x * factor)  # noqa: B023
            if unscale:
                torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            unfused.step()
            if not unscale:
                found = optimizer.modulator.last.grad_sq_norms[0]
                torch.testing.assert_close(found, norm, rtol=1e-6, atol=0)
            continue
        after = values(model, optimizer)
        assert_same(after[0], before[0])
        assert_same(after[1]["modgrad"], before[1]["modgrad"])
        if before[1]["state"]:
            assert_same(after[1]["state"], before[1]["state"])
        else:  # made, as the optimizer makes it
            made = [x for state in after[1]["state"].values() for x in state.values()]
            assert not any(x.any() for x in made)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    assert_equal(sides, 5)
    assert optimizer.modulator.state_dict()["step"] == 3


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


def test_errors_change_nothing():
    def grouped(parameters):
        first, *rest = parameters
        return AdamW([{"params": [first]}, {"params": rest}], lr=0.1)

    model = networks.LateFusion()
    optimizer = wrap(model, grouped, OGM(0.5))
    for _ in range(2):  # without states, and with
        inputs, targets = networks.batch(TWO)
        before = values(model, optimizer)
        backward(model, optimizer, inputs, targets)
        dense = model.head.weight.grad
        model.head.weight.grad = dense.to_sparse()
        with pytest.raises(ValueError, match=r"layout torch\.sparse_coo, allowed: torch\.strided"):
            optimizer.step()
        model.head.weight.grad = dense
        optimizer.modulator._seen.replace(None)
        with pytest.raises(RuntimeError, match="OGM needs scores"):
            optimizer.step()
        assert_same(values(model, optimizer), before)
        backward(model, optimizer, inputs, targets)
        optimizer.step()
    assert optimizer.modulator.state_dict()["step"] == 2


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


class OwnSGD(SGD):
    pass


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (OwnSGD, "it is OwnSGD, allowed: SGD, Adam and AdamW, no subclass"),
        (lambda p: Adam(p, differentiable=True), "it is differentiable"),
        (
            lambda p: Adam([*p, torch.nn.Parameter(torch.ones(1, device="meta"))]),
            "it counts steps on the host, allowed on meta: fused=True or capturable=True",
        ),
        (
            lambda p: SGD(p, weight_decay=torch.tensor(0.1)),
            "its betas or weight_decay are tensors",
        ),
    ],
)
def test_what_cannot_be_fused_is_modulated(inner, reason):
    model = networks.LateFusion()
    with pytest.raises(ValueError, match=f"the step cannot be fused: {reason}"):
        wrap(model, inner, fused=True)
    optimizer = wrap(model, inner)
    assert not optimizer.fused
    assert not optimizer._step_supports_amp_scaling
    backward(model, optimizer, *networks.batch(TWO))
    expected = 0.3 * model.encoders["audio"][0].weight.grad
    if type(optimizer.optimizer) is not Adam:
        optimizer.step()
        assert torch.equal(model.encoders["audio"][0].weight.grad, expected)


def test_what_can_no_longer_be_fused():
    model = networks.LateFusion()
    for fused in (None, True):
        optimizer = wrap(model, INNER["SGD"], fused=fused)
        optimizer.param_groups[0]["lr"] = -0.1  # ascent: torch takes it
        if fused:
            with pytest.raises(
                RuntimeError, match=r"any more: its lr is -0.1, allowed: \[0, inf\)"
            ):
                optimizer.step()
        else:
            assert not optimizer.fused
            optimizer.step()


def test_parameters_of_another_kind_are_looked_at_when_they_come():
    model = networks.LateFusion()
    optimizer = wrap(model, INNER["Adam"])
    assert optimizer.fused
    optimizer.add_param_group(
        {"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]}
    )
    assert not optimizer.fused


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
