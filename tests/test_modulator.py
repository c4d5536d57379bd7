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


def test_accumulated_batches_are_averaged_over_samples(device):
    model, optimizer = setup(TWO, OGM(0.3), device)
    scores = []
    for size in (3, 9):
        inputs, targets = networks.batch(TWO, size, device=device)
        features, output = model(inputs)
        logits = modgrad.late_fusion_logits(features, model.head)
        scores.append(modgrad.modality_scores(list(logits.values()), targets))
        optimizer.observe(logits=logits, targets=targets)
        F.cross_entropy(output, targets).backward()
    optimizer.step()
    expected = (3 * scores[0] + 9 * scores[1]) / 12
    torch.testing.assert_close(optimizer.modulator.last.scores, expected)


def test_forms_of_observation_agree(device):
    model, _ = setup(TWO, device=device)
    inputs, targets = networks.batch(TWO, device=device)
    features, _ = model(inputs)
    logits = modgrad.late_fusion_logits(features, model.head)
    stacked = torch.stack(list(logits.values()))
    forms = [
        {"logits": logits, "targets": targets},
        {"logits": dict(reversed(logits.items())), "targets": targets},
        {"logits": stacked, "targets": targets},
        {"features": features, "head": model.head, "targets": targets},
        {"scores": modgrad.modality_scores(stacked, targets)},
    ]
    found = []
    for form in forms:
        optimizer = ModulatedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            Modalities(model, **model.specs()),
            OGM(0.3),
        )
        model.zero_grad()
        F.cross_entropy(model(inputs)[1], targets).backward()
        optimizer.observe(**form)
        optimizer.step()
        found.append(optimizer.modulator.last.scores)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({}, r"given are \[\], allowed: one of `logits`, `scores`, `features`"),
        ({"logits": 1, "scores": 2}, r"given are \['logits', 'scores'\]"),
        ({"logits": {"audio": 1}, "targets": torch.zeros(3).long()}, r"`logits` has \['audio'\]"),
        ({"logits": torch.ones(2, 3, 4)}, "`targets` is None"),
        (
            {"logits": torch.ones(3, 3, 4), "targets": torch.zeros(3).long()},
            r"allowed: \[2, B, C\]",
        ),
        ({"logits": torch.ones(2, 3, 4), "targets": torch.full((3,), 4)}, r"outside \[0, 4\)"),
        (
            {"scores": torch.ones(3)},
            r"`scores` is torch.float32 \[3\], allowed: floating-point \[2\]",
        ),
        ({"features": {}, "targets": torch.zeros(3).long()}, "`head` is None"),
    ],
)
def test_bad_observations(form, match):
    _, optimizer = setup(TWO)
    with pytest.raises(ValueError, match=match):
        optimizer.observe(**form)


def test_a_forgotten_observation_is_an_error_before_anything_changes():
    model, optimizer = setup(TWO)
    inputs, targets = networks.batch(TWO)
    F.cross_entropy(model(inputs)[1], targets).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"OGM needs scores: call observe\(...\)"):
        optimizer.step()
    for p, (value, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, grad)


def test_a_step_that_changes_nothing_needs_no_observation():
    """As torch.distributed.checkpoint steps, with zero gradients and learning rate 0."""
    model, optimizer = setup(TWO)
    optimizer.param_groups[0]["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.modulator.last is None
    assert optimizer.modulator.state_dict()["step"] == 0


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


def test_missing_gradients_and_frozen_parameters(device):
    model, optimizer = setup(TWO, FixedWeights({"audio": 0.5}), device, fused=False)
    model.encoders["audio"][0].requires_grad_(False)
    inputs, targets = networks.batch(TWO, device=device)
    F.cross_entropy(model(inputs)[1], targets).backward()
    expected = 0.5 * model.encoders["audio"][2].weight.grad
    optimizer.step()
    assert torch.equal(model.encoders["audio"][2].weight.grad, expected)
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all
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
