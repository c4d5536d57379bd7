"""The rules that kernels know: every backend, and csrc/rules.h, against the definition."""

import math

import pytest
import torch
from dispatched import Ops

import modgrad
from modgrad import rules
from modgrad.balancers import METHODS, OGM, EqualNorms, GradNorm, MMPareto, PCGrad
from modgrad.balancers.base import rule_of

RULED = {
    "ogm": OGM(0.3),
    "ogm continuous": OGM(0.3, form="continuous"),
    "equal norms": EqualNorms(),
    "equal norms, halfway": EqualNorms(0.5, cap=1.5),
    "mmpareto": MMPareto(1.2),
    "pcgrad": PCGrad(),
    "gradnorm": GradNorm(0.7, 0.1),
}


def statistic(rule, M, device):
    """Random scores or grams, and K."""
    if rules.check(rule).reads == "scores":
        return torch.rand(M, device=device), 1
    K = {"mmpareto": M + 1, "equal_norms": 1}.get(rule.name, 3)
    x = torch.randn(M, K, 2 * K, dtype=torch.float64, device=device)
    return x @ x.transpose(1, 2), K


def inputs_of(rule, M, device):
    values, K = statistic(rule, M, device)
    kind = rules.check(rule)
    losses = torch.rand(K, device=device) + 0.1
    state = tuple(torch.rand(K, device=device) + 0.1 for _ in range(kind.num_states))
    return values, losses if kind.num_states else None, state


def compare(found, exact):
    """Both in float64, rounded once: an ulp of float32, for pow and tanh of other libraries."""
    torch.testing.assert_close(found, exact, rtol=2**-23, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("M", [2, 3, 5])
@pytest.mark.parametrize("name", RULED)
def test_backends_equal_the_definition(backend, device, name, M):
    rule = RULED[name].rule
    for _ in range(5):
        values, losses, state = inputs_of(rule, M, device)
        weights, new = modgrad.rule_weights(values, rule, losses, state, backend=backend)
        exact, exact_new = rules.weights(rule, values, losses, state)
        assert weights.dtype == torch.float32
        compare(weights, exact)
        assert len(new) == len(exact_new)
        for a, b in zip(new, exact_new, strict=True):
            compare(a, b)


@pytest.mark.parametrize("name", RULED)
def test_the_balancer_says_the_same(name):
    balancer = RULED[name]
    values, losses, state = inputs_of(balancer.rule, 3, "cpu")
    statistics = modgrad.balancers.Statistics(
        torch.zeros((), dtype=torch.int64),
        torch.zeros((), dtype=torch.int64),
        scores=values,
        gram=values,
        losses=losses,
        grad_sq_norms=None if values.dim() == 1 else values[:, 0, 0],
    )
    own = modgrad.balancers.NoState()
    if state:
        own = balancer.init(("a", "b", "c"), len(losses), "cpu")._make(state)
    modulation, new = balancer.update(statistics, own)
    weights, exact_new = rules.weights(balancer.rule, values, losses, state)
    torch.testing.assert_close(modulation.weights.broadcast_to(weights.shape), weights)
    assert all(torch.equal(a, b) for a, b in zip(new, exact_new, strict=True))


def test_every_rule_has_its_row():
    ruled = {m for m in METHODS if isinstance(getattr(m, "rule", None), property)}
    assert {type(balancer) for balancer in RULED.values()} == ruled
    assert {balancer.rule.name for balancer in RULED.values()} == set(rules.RULES)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("balancer", "values", "expected"),
    [
        (OGM(0.3), [0.0, 0.0], [1.0, 1.0]),
        (OGM(0.3), [NAN, 0.5], [1.0, 1.0]),
        (OGM(0.3), [0.5, 0.0], [0.0, 1.0]),
        (OGM(0.0), [0.5, 0.0], [1.0, 1.0]),
        (EqualNorms(), [[[4.0]], [[16.0]]], [1.5, 0.75]),
        (EqualNorms(), [[[0.0]], [[16.0]]], [1.0, 1.0]),
        (EqualNorms(), [[[0.0]], [[0.0]]], [1.0, 1.0]),
        (EqualNorms(), [[[INF]], [[1.0]]], [1.0, 1.0]),
        (EqualNorms(), [[[NAN]], [[1.0]]], [1.0, 1.0]),
        (EqualNorms(cap=2.0), [[[1e-8]], [[1.0]]], [2.0, 0.50005]),
    ],
)
def test_limits(backend, device, balancer, values, expected):
    dtype = torch.float32 if isinstance(balancer, OGM) else torch.float64
    found, _ = modgrad.rule_weights(
        torch.tensor(values, dtype=dtype, device=device), balancer.rule, backend=backend
    )
    assert found[:, 0].tolist() == pytest.approx(expected, rel=2**-24, abs=0)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("name", ["mmpareto", "pcgrad"])
def test_a_gram_that_is_not_finite_leaves_its_modality_alone(backend, device, name, bad):
    rule = RULED[name].rule
    values, *_ = inputs_of(rule, 2, device)
    values[0, 1, 1] = bad
    found, _ = modgrad.rule_weights(values, rule, backend=backend)
    exact, _ = rules.weights(rule, values)
    assert (found[0] == 1).all()
    compare(found, exact)


@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_gradnorm_keeps_its_weights_where_an_update_is_not_finite(backend, device, bad):
    rule = RULED["gradnorm"].rule
    values, losses, state = inputs_of(rule, 2, device)
    losses[1] = bad
    state[1][:] = 0  # the first step
    _, new = modgrad.rule_weights(values, rule, losses, state, backend=backend)
    _, exact = rules.weights(rule, values, losses, state)
    assert torch.equal(new[1], exact[1])
    assert torch.equal(new[0], state[0])


def test_parameters_keep_float64(backend, device):
    """w - lr |g| = 1 - 0.995: what an lr of float32 is off by grows two hundredfold."""
    rule = GradNorm(1.0, 0.1).rule
    gram = torch.diag(torch.tensor([9.95, 3.0], dtype=torch.float64, device=device) ** 2)[None]
    losses, ones = torch.tensor([0.2, 0.9], device=device), torch.ones(2, device=device)
    _, (w, _) = modgrad.rule_weights(gram, rule, losses, (ones, ones), backend=backend)
    assert w[0] < 0.01
    compare(w, rules.weights(rule, gram, losses, (ones, ones))[1][0])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_powers_of_ratios_that_are_not_positive(backend, device, alpha):
    rule = GradNorm(alpha, 0.01).rule
    gram, _, state = inputs_of(rule, 2, device)
    for loss in (-0.4, 0.0):
        losses = torch.tensor([loss, 0.5, 0.9], device=device)
        _, new = modgrad.rule_weights(gram, rule, losses, state, backend=backend)
        exact = rules.weights(rule, gram, losses, state)[1]
        compare(new[0], exact[0])
        assert torch.equal(new[1], exact[1])


def test_nothing_changes_in_place(backend, device):
    rule = RULED["gradnorm"].rule
    given = inputs_of(rule, 3, device)
    kept = [given[0].clone(), given[1].clone(), *(x.clone() for x in given[2])]
    modgrad.rule_weights(given[0], rule, *given[1:], backend=backend)
    assert all(map(torch.equal, kept, [given[0], given[1], *given[2]]))


@pytest.mark.parametrize(
    ("statistic", "rule", "more", "match"),
    [
        (torch.ones(2), modgrad.Rule("best"), {}, "`rule` is 'best', allowed: ogm,"),
        (torch.ones(2), modgrad.Rule("ogm"), {}, "`rule` 'ogm' has 0 parameters, allowed: 2"),
        (torch.ones(1), OGM().rule, {}, "`statistic` has 1 scores"),
        (torch.ones(2), PCGrad().rule, {}, "reads gram, given are scores"),
        (torch.ones(2, 3), PCGrad().rule, {}, r"`statistic` has shape \[2, 3\], allowed"),
        (torch.ones(2, 2, 2), MMPareto().rule, {}, "'mmpareto' has 2 losses, allowed: 3"),
        (torch.ones(2, 2, 2), GradNorm().rule, {}, "`state` has 0 entries, allowed .*: 2"),
        (
            torch.ones(2, 2, 2),
            GradNorm().rule,
            {"state": [torch.ones(2)] * 2},
            r"`losses` is None, allowed with 'gradnorm': a tensor \[2\]",
        ),
        (
            torch.ones(2, 2, 2),
            GradNorm().rule,
            {"state": [torch.ones(3)] * 2, "losses": torch.ones(2)},
            r"`state\[0\]` has shape \[3\], allowed: \[2\]",
        ),
    ],
)
def test_bad_input(statistic, rule, more, match):
    with pytest.raises(ValueError, match=match):
        modgrad.rule_weights(statistic, rule, **more)


def test_a_subclass_that_overrides_update_alone_is_asked():
    class Half(OGM):
        def update(self, statistics, state):
            modulation, state = super().update(statistics, state)
            return modulation._replace(weights=modulation.weights / 2), state

    class Steeper(Half):
        @property
        def rule(self):
            return modgrad.Rule("ogm", (2 * self.alpha, 0.0))

    assert rule_of(OGM(0.3)) == OGM(0.3).rule
    assert rule_of(Half(0.3)) is None
    assert rule_of(Steeper(0.3)) == OGM(0.6).rule
    assert rule_of(MMPareto()) == MMPareto().rule
    assert rule_of(MMPareto(per_tensor=True)) is None
    assert rule_of(modgrad.MGDA()) is None


@pytest.mark.parametrize("balancer", [PCGrad(), GradNorm(), MMPareto()], ids=["pcg", "gn", "mmp"])
def test_several_losses_are_balanced_in_one_op(balancer):
    """One call of balance_ where a balancer of another type takes the gram and the combination."""
    encoders = torch.nn.ModuleDict({m: torch.nn.Linear(3, 2) for m in ("audio", "visual")})
    optimizer = modgrad.ModulatedOptimizer(
        torch.optim.SGD(encoders.parameters(), lr=0.1),
        modgrad.Modalities(encoders, audio="audio.*", visual="visual.*"),
        balancer,
        losses=("joint", "audio", "visual"),
    )
    out = [encoders[m](torch.randn(4, 3)).square().mean() for m in encoders]
    with Ops() as ops:
        optimizer.backward(dict(zip(optimizer.modulator.losses, [sum(out), *out], strict=True)))
    assert ops.own == ["balance_"]
    optimizer.step()
    assert optimizer.modulator.last.gram.shape == (2, 3, 3)
