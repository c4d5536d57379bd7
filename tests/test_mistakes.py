"""What users get wrong: the error names the argument, what was found and what is allowed."""

import networks
import pytest
import torch
from torch.optim import SGD

import modgrad
from modgrad import (
    AGM,
    MGDA,
    OGM,
    PMR,
    Between,
    Clipped,
    EqualNorms,
    Every,
    FixedLossWeights,
    FixedWeights,
    GradientBlending,
    MMPareto,
    Modalities,
    ModulatedOptimizer,
    PCGrad,
    Smoothed,
    attach,
    detach,
)
from modgrad.diagnostics import Log

TWO = ("audio", "visual")
CLASSES = torch.tensor([0, 1, 2])
LOGITS = {m: torch.ones(3, 4) for m in TWO}
A_CLASS = r"`balancer` is the class OGM, allowed: an instance, such as OGM\(…\)"


def made(face=ModulatedOptimizer, balancer=None, **options):
    model = networks.LateFusion(TWO)
    modalities = Modalities(model, **model.specs())
    return face(SGD(model.parameters(), lr=0.1), modalities, balancer or OGM(0.3), **options)


@pytest.mark.parametrize("face", [ModulatedOptimizer, attach])
@pytest.mark.parametrize(
    ("balancer", "options", "error", "match"),
    [
        (OGM, {}, TypeError, A_CLASS),
        ("ogm", {}, TypeError, r"`balancer` is 'ogm', allowed: an instance"),
        (OGM(0.3).rule, {}, TypeError, "`balancer` is Rule, allowed: an instance"),
        (OGM(), {"losses": "joint"}, TypeError, r"`losses` is 'joint', .*such as \['joint'\]"),
        (OGM(), {"losses": 2}, TypeError, "`losses` is 2, allowed: names in a list"),
        (OGM(), {"losses": [1, 2]}, TypeError, r"`losses` is \(1, 2\), allowed: names"),
        (OGM(), {"record": "scores"}, TypeError, r"`record` is 'scores', .*such as \['scores'\]"),
        (OGM(noise=1), {"at": "boundary"}, ValueError, r"GE noise .*at='parameters', or noise=0"),
        (Between(OGM(noise=1)), {"at": "boundary"}, ValueError, "GE noise .*or noise=0"),
    ],
)
def test_constructors(face, balancer, options, error, match):
    model = networks.LateFusion(TWO)
    sgd = SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=match):
        face(sgd, Modalities(model, **model.specs()), balancer, **options)
    assert not sgd._optimizer_step_pre_hooks  # as it was


@pytest.mark.parametrize("wrapper", [Between, Every, Smoothed, Clipped])
def test_wrappers(wrapper):
    with pytest.raises(TypeError, match=A_CLASS):
        wrapper(OGM)
    with pytest.raises(TypeError, match="`balancer` is 'ogm', allowed: an instance"):
        wrapper("ogm")


@pytest.mark.parametrize("call", [ModulatedOptimizer, attach, lambda found, *_: detach(found)])
@pytest.mark.parametrize(
    ("found", "match"),
    [
        (networks.LateFusion(TWO), "`optimizer` is LateFusion, allowed: an Optimizer"),
        (SGD, "`optimizer` is the class SGD, allowed: an Optimizer"),
    ],
)
def test_no_optimizer(call, found, match):
    model = networks.LateFusion(TWO)
    with pytest.raises(TypeError, match=match):
        call(found, Modalities(model, **model.specs()), OGM(0.3))


@pytest.mark.parametrize(
    ("balancer", "allowed"),
    [
        (PCGrad(), "at least 2"),
        (MGDA(), "2 to 10"),
        (MMPareto(), "3"),
        (PMR(), "3"),
        (GradientBlending(), "3"),
        (FixedLossWeights((1.0, 2.0)), "2, one for each number in `weights`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_several_losses_that_were_not_named(balancer, allowed):
    with pytest.raises(ValueError, match=f"`losses` names 1, allowed: {allowed}"):
        made(balancer=balancer)


def test_fixed_weights_of_no_mapping():
    with pytest.raises(TypeError, match="`weights` is list, allowed: a mapping from modality"):
        FixedWeights([1, 2])


GRAM = torch.ones(2, 1, 1)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: modgrad.balance_([torch.ones(2)], [0], 1, EqualNorms()), "EqualNorms"),
        (lambda: modgrad.balanced_cross_entropy(LOGITS, CLASSES, OGM(0.5)), "OGM"),
        (lambda: modgrad.rule_weights(torch.ones(2), OGM(0.5)), "OGM"),
        (lambda: modgrad.rule_weights(GRAM, EqualNorms()), "EqualNorms"),
        (lambda: late_fusion(OGM(0.5)), "OGM"),
        (lambda: sgd_(EqualNorms()), "EqualNorms"),
    ],
)
def test_a_balancer_for_its_rule(call, found):
    with pytest.raises(TypeError, match=rf"`rule` is {found}, .* such as {found}\(…\)\.rule"):
        call()


@pytest.mark.parametrize(
    "rule", [AGM(), "ogm", ("ogm", (1.0, 0.0)), MMPareto(per_tensor=True).rule]
)
def test_no_rule(rule):
    found = type(rule).__name__
    with pytest.raises(
        TypeError, match=rf"`rule` is {found}, allowed: a Rule, such as modgrad.OGM"
    ):
        modgrad.rule_weights(torch.ones(2), rule)


def late_fusion(rule):
    features = [torch.ones(3, 2), torch.ones(3, 2)]
    return modgrad.late_fusion_head(features, torch.ones(4, 4), None, CLASSES, rule=rule)


def sgd_(rule):
    p, weights = torch.ones(2), torch.ones(1)
    modgrad.modulated_sgd_([p], [p.clone()], [], [0], weights, lr=0.1, rule=rule)


TARGETS = {"targets": CLASSES}
HEAD = torch.nn.Linear(12, 4)
FEATURES = {m: torch.ones(3, 6) for m in TWO}
WRONG = "observe\\(scores=…\\)"


@pytest.mark.parametrize(
    ("form", "error", "match"),
    [
        ({"logit": LOGITS}, TypeError, r"given \['logit'\], allowed: `logits`, `targets`"),
        (
            {"logits": list(LOGITS.values()), **TARGETS},
            TypeError,
            r"`logits` is list, allowed: a mapping from \['audio', 'visual'\] to tensors, or a",
        ),
        ({"scores": [0.5, 0.2]}, TypeError, r"`scores` is list, .*\[2\], of audio, visual"),
        ({"scores": {"audio": 0.5, "visual": 0.2}}, TypeError, "`scores` is dict, allowed: a"),
        (
            {"features": list(FEATURES.values()), "head": HEAD, **TARGETS},
            TypeError,
            r"`features` is list, allowed: a mapping from \['audio', 'visual'\]",
        ),
        (
            {"features": {"a": torch.ones(3, 6), "v": torch.ones(3, 6)}, "head": HEAD, **TARGETS},
            ValueError,
            r"`features` has \['a', 'v'\], allowed: \['audio', 'visual'\]",
        ),
        (
            {"features": {0: torch.ones(3, 6), "v": torch.ones(3, 6)}, "head": HEAD, **TARGETS},
            ValueError,
            r"`features` has \[0, 'v'\]",
        ),
        (
            {"features": {**FEATURES, "audio": torch.ones(3, 2, 6)}, "head": HEAD, **TARGETS},
            ValueError,
            r"`features\['audio'\]` has shape \[3, 2, 6\], allowed: \[3, D\]",
        ),
        (
            {"logits": {**LOGITS, "audio": torch.ones(3, 2, 4)}, **TARGETS},
            ValueError,
            r"`logits\['audio'\]` has shape \[3, 2, 4\], allowed: \[3, C\]",
        ),
        (
            {"logits": {**LOGITS, "visual": [1.0]}, **TARGETS},
            TypeError,
            r"`logits\['visual'\]` is list, allowed: a tensor",
        ),
        (
            {"logits": {**LOGITS, "visual": torch.ones(3, 4).long()}, **TARGETS},
            TypeError,
            r"`logits\['visual'\]` has dtype torch.int64",
        ),
        ({"logits": LOGITS, "targets": torch.ones(3, 4)}, TypeError, WRONG),
        ({"logits": LOGITS, "targets": CLASSES[:, None]}, ValueError, WRONG),
        ({"logits": LOGITS, "targets": torch.tensor([0, -100, 1])}, ValueError, WRONG),
    ],
)
def test_observe(form, error, match):
    optimizer = made()
    with pytest.raises(error, match=match):
        optimizer.observe(**form)
    assert optimizer.modulator._seen.is_missing  # as it was


def test_responses_are_named():
    optimizer = made(balancer=AGM())
    with pytest.raises(ValueError, match=r"`responses\['audio'\]` has shape \[2, 4\]"):
        optimizer.observe(responses={**LOGITS, "audio": torch.ones(2, 4)}, targets=CLASSES)


def test_an_unknown_keyword_is_seen_where_nothing_is_needed():
    with pytest.raises(TypeError, match=r"given \['logit'\]"):
        made(balancer=FixedWeights({})).observe(logit=LOGITS)


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        (torch.ones(()), TypeError, r"`losses` is Tensor, allowed: a mapping from \['audio', "),
        ({"audio": 0.5}, TypeError, r"`losses\['audio'\]` is float, allowed: a tensor"),
        ({"audio": torch.ones(2)}, ValueError, r"`losses\['audio'\]` has shape \[2\], .*a scalar"),
        ({"audio": torch.ones(())}, ValueError, r"`losses\['audio'\]` requires no .*encoders froz"),
    ],
)
def test_backward(losses, error, match):
    optimizer = made(balancer=PCGrad(), losses=TWO)
    if isinstance(losses, dict):
        losses = {"visual": torch.ones((), requires_grad=True), **losses}
    with pytest.raises(error, match=match):
        optimizer.backward(losses)
    assert all(p.grad is None for p in optimizer.modulator.held)


def test_log_takes_the_wrapper_too():
    optimizer, log = made(balancer=FixedWeights({})), Log()
    for p in optimizer.modulator.held:
        p.grad = torch.ones_like(p)
    optimizer.step()
    log.step(optimizer)
    assert len(log.run.steps) == 1
    with pytest.raises(TypeError, match="`modulator` is SGD, allowed: a Modulator or Modulated"):
        log.step(optimizer.optimizer)
