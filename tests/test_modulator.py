"""The engine against the formulas as plain loops, and what it keeps, resets and refuses."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops

import modgrad
from modgrad import OGM, Between, FixedWeights, Modalities, ModulatedOptimizer

TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")


def setup(modalities=TWO, balancer=None, device="cpu", optimizer=None, **options):
    model = networks.LateFusion(modalities).to(device)
    inner = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))(model.parameters())
    wrapped = ModulatedOptimizer(
        inner, Modalities(model, **model.specs()), balancer or OGM(alpha=0.3), **options
    )
    return model, wrapped


def train_step(model, optimizer, inputs, targets):
    features, output = model(inputs)
    optimizer.observe(features=features, head=model.head, targets=targets)
    optimizer.zero_grad()
    F.cross_entropy(output, targets).backward()
    optimizer.step()


@pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
def test_twenty_steps_of_ogm_equal_the_loop_over_parameters(backend, device, modalities):
    model, optimizer = setup(modalities, OGM(alpha=0.3), device, backend=backend)
    loop = copy.deepcopy(model)
    sgd = torch.optim.SGD(loop.parameters(), lr=0.1, momentum=0.9)
    damped = 0
    for _ in range(20):
        inputs, targets = networks.batch(modalities, device=device)
        train_step(model, optimizer, inputs, targets)
        features, output = loop(inputs)
        sgd.zero_grad()
        F.cross_entropy(output, targets).backward()
        networks.ogm_loop(loop, features, targets, alpha=0.3)
        sgd.step()
        damped += (optimizer.modulator.last.weights < 1).sum().item()
    assert damped > 0
    for a, b in zip(model.parameters(), loop.parameters(), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_sees_scaled_gradients(device, optimizer):
    balancer = FixedWeights({"audio": 0.25, "visual": 4.0})
    model, wrapped = setup(TWO, balancer, device, lambda p: optimizer(p, lr=0.01), fused=False)
    plain = copy.deepcopy(model)
    inner = optimizer(plain.parameters(), lr=0.01)
    for _ in range(3):
        inputs, targets = networks.batch(TWO, device=device)
        train_step(model, wrapped, inputs, targets)
        inner.zero_grad()
        F.cross_entropy(plain(inputs)[1], targets).backward()
        for m, factor in (("audio", 0.25), ("visual", 4.0)):
            for p in plain.encoders[m].parameters():
                p.grad.mul_(factor)
        inner.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)  # powers of two


def test_last_holds_what_the_step_measured_and_did(backend, device):
    model, optimizer = setup(
        THREE,
        OGM(alpha=0.3, noise=0.5),
        device,
        record=["grad_sq_norms", "param_sq_norms"],
        backend=backend,
    )
    inputs, targets = networks.batch(THREE, device=device)
    features, output = model(inputs)
    logits = modgrad.late_fusion_logits(features, model.head)
    torch.testing.assert_close(sum(logits.values()), output)
    optimizer.observe(logits=logits, targets=targets)
    F.cross_entropy(output, targets).backward()
    before = {m: [p.grad.clone() for p in e.parameters()] for m, e in model.encoders.items()}
    sizes = {
        m: sum(p.double().square().sum() for p in e.parameters()) for m, e in model.encoders.items()
    }
    optimizer.step()
    last = optimizer.modulator.last
    assert last.modalities == THREE
    for i, m in enumerate(THREE):
        p = logits[m].softmax(1).gather(1, targets[:, None]).mean()
        torch.testing.assert_close(last.scores[i], p.float())
        norm = sum(g.double().square().sum() for g in before[m])
        torch.testing.assert_close(last.grad_sq_norms[i], norm, rtol=1e-12, atol=0)
        torch.testing.assert_close(last.param_sq_norms[i], sizes[m], rtol=1e-12, atol=0)
    assert last.noise.tolist() == [0.5] * 3
    numbers = last.read()
    assert numbers["weights"]["visual"] == last.weights[1].item()
    assert set(numbers) == {"weights", "noise", "scores", "grad_sq_norms", "param_sq_norms"}


def test_shared_parameters_are_left_alone(device):
    model, optimizer = setup(TWO, FixedWeights({"audio": 0.0, "visual": 0.0}), device)
    head = model.head.weight.detach().clone()
    frozen = [p.detach().clone() for p in model.encoders.parameters()]
    train_step(model, optimizer, *networks.batch(TWO, device=device))
    assert not torch.equal(model.head.weight, head)
    for p, q in zip(model.encoders.parameters(), frozen, strict=True):
        assert torch.equal(p, q)


def test_bad_gradients_change_nothing():
    model, optimizer = setup(TWO, FixedWeights({"audio": 0.5}))
    F.cross_entropy(model(networks.batch(TWO)[0])[1], torch.zeros(9).long()).backward()
    last = list(model.encoders["visual"].parameters())[-1]
    dense = last.grad
    last.grad = dense.to_sparse()
    before = [p.grad.clone() for p in model.encoders["audio"].parameters()]
    with pytest.raises(ValueError, match=r"layout torch\.sparse_coo"):
        optimizer.step()
    for p, grad in zip(model.encoders["audio"].parameters(), before, strict=True):
        assert torch.equal(p.grad, grad)
    last.grad = dense
    optimizer.step()
    assert optimizer.modulator.state_dict()["step"] == 1


def test_disabled_modulator_is_plain_training():
    model, optimizer = setup(TWO, FixedWeights({"audio": 0.0}))
    optimizer.modulator.enabled = False
    before = model.encoders["audio"][0].weight.detach().clone()
    train_step(model, optimizer, *networks.batch(TWO))
    assert not torch.equal(model.encoders["audio"][0].weight, before)


def test_windows_in_epochs():
    model, optimizer = setup(TWO, Between(FixedWeights({"audio": 0.5}), 1, 2, unit="epoch"))
    seen = []
    for epoch in range(3):
        optimizer.modulator.set_epoch(epoch)
        train_step(model, optimizer, *networks.batch(TWO))
        seen.append(optimizer.modulator.last.weights.tolist())
    assert seen == [[1, 1], [0.5, 1], [1, 1]]


def test_noise_is_the_same_for_the_same_seed_and_new_in_every_step():
    def gradients(seed):
        torch.manual_seed(0)
        model, optimizer = setup(TWO, OGM(0.0, noise=1.0), seed=seed, fused=False)
        out = []
        for _ in range(2):
            inputs, targets = networks.batch(TWO)
            features, output = model(inputs)
            optimizer.observe(features=features, head=model.head, targets=targets)
            optimizer.zero_grad()
            F.cross_entropy(output, targets).backward()
            weight = model.encoders["audio"][0].weight
            before = weight.grad.clone()
            optimizer.step()
            out.append((weight.grad - before) / before.std())
        return out

    a, b, c = gradients(1), gradients(1), gradients(2)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.isclose(a[0], a[1]).any()
    assert not torch.isclose(a[0], c[0]).any()


@pytest.mark.parametrize("at", ["parameters", "boundary"])
def test_nothing_is_read_on_the_host_in_a_step(backend, device, at):
    record = [] if at == "boundary" else ["grad_sq_norms", "param_sq_norms"]
    balancer = OGM(0.3, noise=0.0 if at == "boundary" else 1.0)
    model, optimizer = setup(TWO, balancer, device, at=at, record=record, backend=backend)
    inputs, targets = networks.batch(TWO, device=device)
    features = {m: encoder(inputs[m]) for m, encoder in model.encoders.items()}
    if at == "boundary":
        features = optimizer.modulator.scale_backward(features)
    output = model.head(torch.cat(list(features.values()), dim=1))
    loss = F.cross_entropy(output, targets)
    with Ops() as ops:
        optimizer.observe(features=features, head=model.head, targets=targets)
        loss.backward()
        optimizer.step()
    assert ops.reads == 0
    with Ops() as ops:
        optimizer.modulator.last.weights[0].item()
    assert ops.reads == 1  # the counter counts


@pytest.mark.parametrize("fused", [None, False])
def test_grad_scale_and_found_inf_of_a_fused_optimizer(fused):
    model, optimizer = setup(
        TWO,
        OGM(0.3),
        record=["grad_sq_norms"],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        fused=fused,
    )
    inner = optimizer.optimizer
    inputs, targets = networks.batch(TWO)
    features, output = model(inputs)
    optimizer.observe(features=features, head=model.head, targets=targets)
    (F.cross_entropy(output, targets) * 1024).backward()
    norm = (
        sum(p.grad.double().square().sum() for p in model.encoders["audio"].parameters()) / 1024**2
    )
    inner.grad_scale, inner.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    before = model.head.weight.detach().clone()
    optimizer.step()
    found = optimizer.modulator.last.grad_sq_norms[0]
    if optimizer.fused:  # the update that would measure them was skipped
        assert found.isnan()
    else:
        torch.testing.assert_close(found, norm)
    assert optimizer.modulator.state_dict()["step"] == 0  # the step was skipped
    assert torch.equal(before, model.head.weight)
