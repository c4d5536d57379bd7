"""The wrapper is an Optimizer, and the hook leaves the user's own one as it is."""

import copy
import io
import pickle

import networks
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from modgrad import OGM, FixedWeights, Modalities, ModulatedOptimizer, Smoothed, attach, detach

TWO = ("audio", "visual")
INNER = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}
HALF = {"audio": 0.5}


@pytest.fixture(params=[name for name in INNER if name != "LBFGS"])
def inner(request):
    return INNER[request.param]


def wrap(model, inner, balancer=None, **options):
    modalities = Modalities(model, **model.specs())
    return ModulatedOptimizer(
        inner(model.parameters()), modalities, balancer or FixedWeights(HALF), **options
    )


def backward(model, optimizer, inputs, targets):
    features, output = model(inputs)
    optimizer.observe(features=features, head=model.head, targets=targets)
    optimizer.zero_grad()
    F.cross_entropy(output, targets).backward()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_is_an_optimizer(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    assert optimizer.state is optimizer.optimizer.state
    assert optimizer.defaults is optimizer.optimizer.defaults
    assert "FixedWeights" in repr(optimizer)
    assert type(optimizer.optimizer).__name__ in repr(optimizer)


def test_schedulers(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner)
    lr = optimizer.param_groups[0]["lr"]
    steps = StepLR(optimizer, 1, gamma=0.5)
    for _ in range(2):
        backward(model, optimizer, *networks.batch(TWO))
        optimizer.step()
        steps.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == lr * 0.25
    optimizer = wrap(networks.LateFusion(), inner)
    OneCycleLR(optimizer, max_lr=0.3, total_steps=10)
    assert optimizer.optimizer.param_groups[0]["lr"] == pytest.approx(0.3 / 25)


def test_learning_rate_set_after_loading_reaches_the_inner_optimizer(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner)
    optimizer.load_state_dict(optimizer.state_dict())  # installs new dictionaries
    optimizer.param_groups[0]["lr"] = 0.123
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.123


def test_state_dict_round_trip_resumes_bit_for_bit(inner):
    balancer = Smoothed(OGM(0.3, noise=1.0), 0.5)
    torch.manual_seed(0)
    model = networks.LateFusion()
    optimizer = wrap(model, inner, balancer)
    batches = [networks.batch(TWO) for _ in range(6)]
    for inputs, targets in batches[:3]:
        backward(model, optimizer, inputs, targets)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = networks.LateFusion()
    resumed.load_state_dict(saved["model"])
    other = wrap(resumed, inner, balancer)
    other.load_state_dict(state_dict=saved["optimizer"])
    for inputs, targets in batches[3:]:
        for m, o in ((model, optimizer), (resumed, other)):
            backward(m, o, inputs, targets)
            o.step()
    assert same(model, resumed)


def test_checkpoints_are_interchangeable_with_the_plain_optimizer(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner)
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.step()
    plain = inner(model.parameters())
    plain.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(plain.state_dict())
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.step()


def test_a_state_that_does_not_fit_changes_nothing(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner, Smoothed(OGM(0.3)))
    before = copy.deepcopy(optimizer.state_dict())
    for key, value, match in (
        ("modalities", ["a", "b"], r"is of modalities \['a', 'b'\]"),
        ("balancer", {}, "holds balancer state {}"),
    ):
        bad = copy.deepcopy(before)
        bad["param_groups"][0]["lr"] = 7.0
        bad["modgrad"][key] = value
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(bad)
        assert optimizer.param_groups[0]["lr"] != 7.0
    bad = copy.deepcopy(before)
    del bad["modgrad"]["step"]
    with pytest.raises(ValueError, match="allowed: "):
        optimizer.load_state_dict(bad)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_train_on_their_own(inner, duplicate):
    model = networks.LateFusion()
    optimizer = wrap(model, inner, OGM(0.3, noise=1.0))
    inputs, targets = networks.batch(TWO)
    backward(model, optimizer, inputs, targets)
    optimizer.step()
    twin, twin_optimizer = duplicate((model, optimizer))
    assert not set(twin.parameters()) & set(model.parameters())
    for m, o in ((model, optimizer), (twin, twin_optimizer)):
        backward(m, o, inputs, targets)
        o.step()
    assert same(model, twin)
    assert torch.equal(optimizer.modulator.last.weights, twin_optimizer.modulator.last.weights)
    assert twin_optimizer.modulator.state_dict()["step"] == 2


@pytest.mark.parametrize("fused", [None, False])
def test_add_param_group(inner, fused):
    model = networks.LateFusion()
    model.encoders["audio"][2].requires_grad_(False)
    held = [p for p in model.parameters() if p.requires_grad]
    optimizer = ModulatedOptimizer(
        inner(held), Modalities(model, **model.specs()), FixedWeights({"audio": 0.0}), fused=fused
    )
    model.encoders["audio"][2].requires_grad_(True)
    added = {
        "params": list(model.encoders["audio"][2].parameters()),
        "lr": 1.0,
        "weight_decay": 0.0,
    }
    optimizer.add_param_group(added)
    before = model.encoders["audio"][2].weight.detach().clone()
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.step()
    assert torch.equal(model.encoders["audio"][2].weight, before)
    scaled = model.encoders["audio"][2].weight.grad.abs().max() == 0
    assert scaled == (fused is False)


def test_a_new_parameter_the_optimizer_does_not_hold_is_an_error(inner):
    model = networks.LateFusion()
    with pytest.raises(ValueError, match=r"does not hold 'encoders.audio.0.weight' of `audio`"):
        ModulatedOptimizer(
            inner(model.head.parameters()), Modalities(model, **model.specs()), FixedWeights({})
        )


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("name", ["SGD", "AdamW fused", "LBFGS"])
def test_closures(name, by_keyword, fused):
    def run(scale):
        torch.manual_seed(3)
        model = networks.LateFusion()
        inputs, targets = networks.batch(TWO)
        calls = []
        optimizer = INNER[name](model.parameters())

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs)[1], targets)
            loss.backward()
            calls.append(loss.item())
            if scale:  # by hand
                for p in model.encoders["audio"].parameters():
                    p.grad.mul_(0.5)
            return loss

        stepped = optimizer
        if not scale:
            modalities = Modalities(model, **model.specs())
            stepped = ModulatedOptimizer(optimizer, modalities, FixedWeights(HALF), fused=fused)
        loss = stepped.step(closure=closure) if by_keyword else stepped.step(closure)
        assert loss.item() == calls[0]
        assert len(calls) >= (2 if name == "LBFGS" else 1)
        return model

    by_hand, by_step = run(scale=True), run(scale=False)
    if fused is False or name == "LBFGS":
        assert same(by_hand, by_step)
    for a, b in zip(by_hand.parameters(), by_step.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fused", [None, False])
def test_hooks_fire_once(inner, fused):
    model = networks.LateFusion()
    optimizer = wrap(model, inner, fused=fused)
    fired = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    handle = register_optimizer_step_post_hook(lambda *_: fired.append("global"))
    try:
        backward(model, optimizer, *networks.batch(TWO))
        optimizer.step()
    finally:
        handle.remove()
    optimizer.state_dict()
    assert fired == ["pre", "post", "global", "saved"]


def test_zero_grad(inner):
    model = networks.LateFusion()
    optimizer = wrap(model, inner)
    backward(model, optimizer, *networks.batch(TWO))
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().max() == 0 for p in model.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


def test_grad_scaler_where_the_step_is_not_fused(inner):
    """The wrapper must not claim to unscale: the inner optimizer would never see the scale."""
    model = networks.LateFusion()
    twin = copy.deepcopy(model)
    inputs, targets = networks.batch(TWO)
    scaled, plain = wrap(model, inner, fused=False), wrap(twin, inner, fused=False)
    assert not scaled._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = F.cross_entropy(model(inputs)[1], targets)
    scaler.scale(loss).backward()
    scaler.step(scaled)
    scaler.update()
    F.cross_entropy(twin(inputs)[1], targets).backward()
    plain.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    before = copy.deepcopy(model)
    scaled.zero_grad()
    scaler.scale(F.cross_entropy(model(inputs)[1], targets) * float("inf")).backward()
    scaler.step(scaled)
    assert same(before, model)
    assert scaled.modulator.state_dict()["step"] == 1


def test_attach_and_detach(inner):
    model = networks.LateFusion()
    optimizer = inner(model.parameters())
    modalities = Modalities(model, **model.specs())
    modulator = attach(optimizer, modalities, FixedWeights({"audio": 0.0}))
    with pytest.raises(RuntimeError, match="modulated already"):
        attach(optimizer, modalities, FixedWeights({}))
    inputs, targets = networks.batch(TWO)
    F.cross_entropy(model(inputs)[1], targets).backward()
    optimizer.step()
    assert modulator.last.weights.tolist() == [0.0, 1.0]
    assert model.encoders["audio"][0].weight.grad.abs().max() == 0
    detach(optimizer)
    F.cross_entropy(model(inputs)[1], targets).backward()
    optimizer.step()
    assert model.encoders["audio"][0].weight.grad.abs().max() > 0
    with pytest.raises(RuntimeError, match="nothing is attached"):
        detach(optimizer)
    with pytest.raises(RuntimeError, match="modulated already"):
        attach(wrap(networks.LateFusion(), inner), modalities, FixedWeights({}))


def test_bad_arguments():
    model = networks.LateFusion()
    modalities = Modalities(model, **model.specs())
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="`optimizer` is list"):
        ModulatedOptimizer([], modalities, OGM(0.3))
    with pytest.raises(TypeError, match="`modalities` is dict"):
        ModulatedOptimizer(sgd, {}, OGM(0.3))
    with pytest.raises(ValueError, match=r"unknown statistics \['loss'\], allowed: "):
        ModulatedOptimizer(sgd, modalities, OGM(0.3), record=["loss"])
    with pytest.raises(ValueError, match="allowed: native, triton, reference"):
        ModulatedOptimizer(sgd, modalities, OGM(0.3), backend="cutlass")
    with pytest.raises(ValueError, match="`apply` is 'weights', allowed: 'gradient', 'update'"):
        ModulatedOptimizer(sgd, modalities, OGM(0.3), apply="weights")
    with pytest.raises(ValueError, match="`apply` is 'update' with fused=False"):
        ModulatedOptimizer(sgd, modalities, OGM(0.3), apply="update", fused=False)
    for options in ({"at": "boundary"}, {"losses": ("joint", "audio")}):
        with pytest.raises(ValueError, match="`apply` is 'update', allowed: 'gradient' with"):
            ModulatedOptimizer(sgd, modalities, OGM(0.3), apply="update", **options)
    rmsprop = torch.optim.RMSprop(model.parameters())
    for options in ({"fused": True}, {"apply": "update"}):
        with pytest.raises(ValueError, match="cannot be fused: it is RMSprop, allowed: SGD, Adam"):
            ModulatedOptimizer(rmsprop, modalities, OGM(0.3), **options)
    assert not rmsprop._optimizer_step_pre_hooks
    assert not sgd._optimizer_step_pre_hooks  # nothing half-attached
