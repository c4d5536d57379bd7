"""Steps out of the ordinary: batches that are skipped, encoders frozen, absent or replaced."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from test_modulator import TWO, setup

import modgrad
from modgrad import OGM, FixedWeights, MMPareto, Modalities, ModulatedOptimizer


def test_a_batch_that_is_skipped_can_be_forgotten():
    model, optimizer = setup(TWO, OGM(0.3))
    batches = [networks.batch(TWO) for _ in range(2)]
    seen = []
    for skipped in (True, False):
        for inputs, targets in batches[skipped is False :]:
            features, output = model(inputs)
            optimizer.observe(features=features, head=model.head, targets=targets)
            if skipped:
                optimizer.modulator.forget()
                skipped = False
        F.cross_entropy(output, targets).backward()
        optimizer.modulator.modulate()
        seen.append(optimizer.modulator.last.scores)
    assert torch.equal(*seen)


def test_what_was_observed_in_a_step_of_frozen_encoders_is_gone_after_it():
    model, optimizer = setup(TWO, OGM(0.3))
    scores = []
    for frozen in (True, False):
        model.encoders.requires_grad_(not frozen)
        inputs, targets = networks.batch(TWO)
        features, output = model(inputs)
        logits = modgrad.late_fusion_logits(features, model.head)
        scores.append(modgrad.modality_scores(list(logits.values()), targets))
        optimizer.observe(features=features, head=model.head, targets=targets)
        F.cross_entropy(output, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(optimizer.modulator.last.scores, scores[1])


def test_an_encoder_that_the_optimizer_does_not_hold_is_an_error():
    model, optimizer = setup(TWO, modgrad.EqualNorms())

    def step():
        optimizer.zero_grad()
        F.cross_entropy(
            model(networks.batch(TWO)[0])[1], torch.zeros(9, dtype=torch.long)
        ).backward()
        optimizer.step()

    step()
    model.encoders["visual"] = copy.deepcopy(model.encoders["visual"])
    for _ in range(9):
        step()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"does not hold 'encoders.visual.* of `visual`"):
            step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    optimizer.add_param_group({"params": model.encoders["visual"].parameters()})
    step()
    assert (optimizer.modulator.last.grad_sq_norms > 0).all()


def test_a_modality_that_is_absent_is_looked_for_once(monkeypatch):
    model, optimizer = setup(TWO, modgrad.EqualNorms())
    looked = []
    assign = Modalities.assign
    monkeypatch.setattr(Modalities, "assign", lambda *a: (looked.append(1), assign(*a))[1])
    for absent in [True, False] * 10 + [True] * 25:
        optimizer.zero_grad()
        features = {m: e(torch.randn(3, networks.WIDTHS[m])) for m, e in model.encoders.items()}
        sum(f.square().sum() for m, f in features.items() if m == "audio" or not absent).backward()
        optimizer.step()
    assert len(looked) == 1


@pytest.mark.parametrize("absent", [("visual",), ("audio", "visual")])
@pytest.mark.parametrize("balancer", [FixedWeights({"audio": 0.5}), MMPareto()], ids=repr)
def test_an_encoder_that_no_loss_reaches_stays_where_it_is(balancer, absent):
    model = networks.LateFusion()
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = ModulatedOptimizer(
        inner, Modalities(model, **model.specs()), balancer, losses=("joint", *TWO)
    )
    for without in ((), absent):
        before = copy.deepcopy(model.encoders)
        inputs, targets = networks.batch(TWO)
        features, _ = model(inputs)
        features = {m: torch.zeros_like(h) if m in without else h for m, h in features.items()}
        losses = {"joint": F.cross_entropy(model.head(torch.cat([*features.values()], 1)), targets)}
        for m, logits in modgrad.late_fusion_logits(features, model.head).items():
            losses[m] = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()
    assert model.head.weight.grad is not None
    for m, encoder in model.encoders.items():
        for old, new in zip(before[m].parameters(), encoder.parameters(), strict=True):
            assert (new.grad is None) == (m in absent)
            assert torch.equal(old, new) == (m in absent)
            assert inner.state[new]["step"] == (1 if m in absent else 2)


def test_a_step_that_changes_nothing_needs_no_observation():
    """As torch.distributed.checkpoint steps, with zero gradients and learning rate 0."""
    model, optimizer = setup(TWO)
    optimizer.param_groups[0]["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.modulator.last is None
    assert optimizer.modulator.state_dict()["step"] == 0


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
