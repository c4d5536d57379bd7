"""What ``observe`` takes, what it makes of it, and what it refuses."""

import networks
import pytest
import torch
import torch.nn.functional as F
from test_modulator import TWO, setup
from torch import nn

import modgrad
from modgrad import OGM, Modalities, ModulatedOptimizer
from modgrad.observation import measure


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


@pytest.mark.parametrize("head", [nn.Linear(8, 3), {m: nn.Linear(4, 3) for m in TWO}])
def test_features_of_an_autocast_that_is_over(head):
    features = {m: torch.randn(5, 4) for m in TWO}
    targets, found = torch.randint(0, 3, (5,)), []
    for dtype in (torch.bfloat16, torch.float32):
        features = {m: h.to(dtype) for m, h in features.items()}
        form = {"features": features, "head": head, "targets": targets}
        found.append(measure(form, frozenset({"scores"}), TWO, None)["scores"][0])
    assert torch.equal(*found)


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
