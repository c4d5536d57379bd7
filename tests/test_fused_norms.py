"""Statistics that a fused update measures on its way, and weights that it finds from them."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from dispatched import Ops
from fused import SGD, TWO, AdamW, assert_equal, assert_same, pair, train, values

import modgrad
from modgrad import Modalities, ModulatedOptimizer

INNER = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}
NORMS = ("grad_sq_norms", "param_sq_norms")


def two_groups(inner):
    """Weight matrices and biases apart, as with a decay of their own."""

    def make(parameters):
        parameters = list(parameters)
        shapes = (lambda p: p.dim() > 1), (lambda p: p.dim() == 1)
        return inner([{"params": [p for p in parameters if keep(p)]} for keep in shapes])

    return make


def called(optimizer):
    with Ops() as ops:
        optimizer.step()
    return ops.own


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("groups", [1, 2])
def test_equal_norms(name, groups):
    inner = INNER[name] if groups == 1 else two_groups(INNER[name])
    sides = pair(inner, balancer=modgrad.EqualNorms())
    train(sides, 5)
    assert_equal(sides, 5)
    last, other = (optimizer.modulator.last for _, optimizer in sides)
    assert (last.weights != 1).all()
    torch.testing.assert_close(last.weights, other.weights)
    torch.testing.assert_close(last.grad_sq_norms, other.grad_sq_norms)
    model, optimizer = sides[0]
    update = "modulated_sgd_" if name == "SGD" else "modulated_adam_"
    F.mse_loss(model(networks.batch(TWO)[0])[1], torch.zeros(9, 4)).backward()
    if groups == 1:
        assert called(optimizer) == [update]
    else:  # the norms of a modality are of both groups
        assert called(optimizer) == ["group_sq_norms", "rule_weights", update, update]


@pytest.mark.parametrize("groups", [1, 2])
def test_recorded_norms_cost_no_pass(groups):
    inner = INNER["AdamW"] if groups == 1 else two_groups(INNER["AdamW"])
    sides = pair(inner, balancer=modgrad.OGM(0.3), record=NORMS)
    (_, fused), (twin, _) = sides
    modalities = Modalities(twin, **twin.specs())
    unfused = ModulatedOptimizer(
        inner(twin.parameters()), modalities, modgrad.OGM(0.3), fused=False, record=NORMS
    )
    sides = sides[0], (twin, unfused)
    train(sides, 3)
    for norms in NORMS:
        found, expected = (getattr(o.modulator.last, norms) for o in (fused, unfused))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert_equal(sides, 3)
    model = sides[0][0]
    features, output = model(networks.batch(TWO)[0])
    targets = torch.zeros(9, dtype=torch.int64)
    fused.observe(features=features, head=model.head, targets=targets)
    F.cross_entropy(output, targets).backward()
    assert called(fused) == ["rule_weights"] + ["modulated_adam_"] * groups


def cross_modal(fused, start, inner, remedy):
    model = copy.deepcopy(start)
    fusion = {m: f"{m}_fusion" for m in TWO}
    balancer = modgrad.ConditionalLearningSpeed(
        fusion, shared="squeeze", tolerance=0.0, window=2, remedy=remedy
    )
    modalities = Modalities(model, **model.specs())
    return model, ModulatedOptimizer(inner(model.parameters()), modalities, balancer, fused=fused)


@pytest.mark.parametrize("remedy", ["gates", "freeze"])
@pytest.mark.parametrize("name", INNER)
def test_conditional_learning_speed_measures_in_the_update(name, remedy):
    start = networks.CrossModal()
    sides = [cross_modal(fused, start, INNER[name], remedy) for fused in (True, False)]
    seen = []
    for _ in range(6):
        inputs, targets = networks.batch(TWO)
        for model, optimizer in sides:
            optimizer.zero_grad()
            logits = model(inputs, optimizer.modulator.state.branch)
            F.cross_entropy(sum(logits.values()), targets).backward()
            ops = called(optimizer)
            if model is sides[0][0]:
                assert ops == ["modulated_sgd_" if name == "SGD" else "modulated_adam_"]
        first, second = (optimizer.modulator.state for _, optimizer in sides)
        assert first.branch == second.branch
        torch.testing.assert_close(first.sums, second.sums, rtol=1e-4, atol=0)
        seen.append(int(first.branch))
    assert {-1} < set(seen), "steps of both kinds"
    assert_equal(sides, 6)
    torch.testing.assert_close(*(o.modulator.last.weights for _, o in sides))


@pytest.mark.parametrize("balancer", ["equal", "speed"])
def test_a_step_that_grad_scaler_skips_changes_nothing(balancer):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    if balancer == "equal":
        ((model, optimizer), _) = pair(INNER["AdamW"], balancer=modgrad.EqualNorms())
        forward = lambda inputs: model(inputs)[1]  # noqa: E731
    else:
        model, optimizer = cross_modal(True, networks.CrossModal(), INNER["AdamW"], "freeze")
        forward = lambda inputs: sum(model(inputs).values())  # noqa: E731
    for step in range(3):
        inputs, targets = networks.batch(TWO)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(forward(inputs), targets)).backward()
        if step == 1:
            next(model.parameters()).grad.fill_(float("inf"))
        before = values(model, optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert_same(before, values(model, optimizer))
        else:
            assert int(optimizer.modulator.state_dict()["step"]) == (1 if step == 0 else 2)


def test_grad_scaler_does_not_show_in_the_norms():
    plain, scaled = (pair(INNER["SGD"], balancer=modgrad.EqualNorms(0.5))[0] for _ in range(2))
    scaled[0].load_state_dict(plain[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inputs, targets = networks.batch(TWO)
    for model, optimizer in (plain, scaled):
        loss = F.cross_entropy(model(inputs)[1], targets)
        if model is plain[0]:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
    a, b = (optimizer.modulator.last for _, optimizer in (plain, scaled))
    torch.testing.assert_close(a.grad_sq_norms, b.grad_sq_norms)
    torch.testing.assert_close(a.weights, b.weights)


def test_a_subclass_that_makes_something_of_the_weights_has_them_first():
    class Half(modgrad.EqualNorms):
        def modulation(self, weights):
            return super().modulation(weights / 2)

    sides = pair(INNER["SGD"], balancer=Half())
    train(sides, 3)
    assert_equal(sides, 3)
    assert (sides[0][1].modulator.last.weights < 1).any()


def test_unfused_norms_are_balanced_in_one_op():
    (model, fused), (twin, unfused) = pair(INNER["SGD"], balancer=modgrad.EqualNorms())
    inputs, targets = networks.batch(TWO)
    for net in (model, twin):
        F.cross_entropy(net(inputs)[1], targets).backward()
    assert called(unfused) == ["balance_"]
    fused.step()
    last, other = fused.modulator.last, unfused.modulator.last
    torch.testing.assert_close(last.weights, other.weights)
    torch.testing.assert_close(last.grad_sq_norms, other.grad_sq_norms)
