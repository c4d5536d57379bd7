"""The formulas of csrc, compiled for the CPU, against known answers and float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import updates

from modgrad import rules
from modgrad.backends.philox import normals

# Known answers of Philox4x32-10, published with the generator: counter, key, output.
KNOWN = [
    ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0_A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(formulas, counter, key, expected):
    assert formulas.philox(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, -3])
def test_normals_equal_the_reference(formulas, seed):
    found = [formulas.normals(seed % 2**64, 5, q) for q in range(64)]
    expected = normals(torch.tensor(seed), 5, 256).numpy()
    np.testing.assert_allclose(np.ravel(found), expected, rtol=0, atol=2e-6)


def test_normals_are_normal(formulas):
    z = np.ravel([formulas.normals(9, 0, q) for q in range(50_000)])
    n = len(z)
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
    lag = [abs(np.corrcoef(z[:-k], z[k:])[0, 1]) for k in (1, 2, 3, 4)]
    assert max(lag) < 5 / n**0.5


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_standard_deviation(formulas, n, offset):
    x = offset + np.random.default_rng(n).standard_normal(n)
    expected = x.std(ddof=1) if n > 1 else 0.0
    assert formulas.standard_deviation(x) == pytest.approx(expected, rel=1e-12)


def test_standard_deviation_at_the_edges(formulas):
    assert formulas.standard_deviation(np.full(7, 0.1)) == 0
    assert np.isnan(formulas.standard_deviation(np.array([0.0, np.nan])))
    assert np.isnan(formulas.standard_deviation(np.array([0.0, np.inf])))


@pytest.mark.parametrize("sizes", [[], [0], [1], [16, 0, 17, 100], [64] * 50, [1000, 3]])
def test_plan_covers_every_element_once_and_in_order(formulas, sizes):
    chunks, tasks = formulas.plan(sizes, 16, 40)
    covered = [(t, i) for t, begin, size in chunks for i in range(begin, begin + size)]
    assert covered == [(t, i) for t, size in enumerate(sizes) for i in range(size)]
    assert all(0 < size <= 16 and begin % 16 == 0 for _, begin, size in chunks)
    assert tasks[0] == 0
    assert tasks[-1] == len(chunks)
    assert all(a < b for a, b in pairwise(tasks))
    work = [sum(size for _, _, size in chunks[a:b]) for a, b in pairwise(tasks)]
    assert all(w < 40 + 16 for w in work)
    assert all(w >= 40 for w in work[:-1])


def test_weights_act_on_the_gradient_or_the_rate(formulas):
    assert formulas.weighted(0.1, 0.5, 2.0, 3.0, 4.0, False, False) == (0.125, 1.5, 0.1)
    assert formulas.weighted(0.1, 0.5, 2.0, 3.0, 4.0, True, True) == (-0.25, -1.5, 0.05)
    # no noise asked for: none, whatever the spread
    assert formulas.weighted(0.1, 0.5, 0.0, np.inf, 1.0, False, False)[1] == 0


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_element(formulas, nesterov, first):
    for x, p, b in np.random.default_rng(0).standard_normal((100, 3)):
        expected = updates.numpy_sgd(p, x, b, 0.1, 0.9, 0.3, 0.05, nesterov, first)
        found = formulas.sgd(x, p, b, 0.1, 0.9, 0.3, 0.05, nesterov, first)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        plain, _ = updates.numpy_sgd(p, x, None, 0.1, 0.0, 0.0, 0.05, False, False)
        assert formulas.sgd_without_momentum(x, p, 0.1, 0.05) == pytest.approx(plain, abs=1e-14)
    assert formulas.sgd_without_momentum(1.0, np.inf, 0.1, 0.0) == np.inf


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_adam_element(formulas, step, decoupled):
    options = (0.1, 0.8, 0.95, 1e-6, 0.05, decoupled)
    for x, p, m, v, largest in np.random.default_rng(step).standard_normal((100, 5)):
        state = (m, v * v, largest * largest)
        expected = updates.numpy_adam(p, x, *state, step - 1, *options)
        found = formulas.adam(x, p, *state, step, *options)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_larger_keeps_nan(formulas):
    assert formulas.larger(1.0, 2.0) == 2
    assert formulas.larger(3.0, 2.0) == 3
    assert np.isnan(formulas.larger(np.nan, 2.0))
    assert np.isnan(formulas.larger(2.0, np.nan))


def test_gradnorm_by_hand(formulas):
    """G = (1, 3), mean 2, r = (4/3, 2/3), targets (8/3, 4/3): the first weight grows."""
    gram = [1.0, 0.0, 0.0, 9.0]
    states = [[1.0, 1.0], [2.0, 2.0]]
    gradnorm = list(rules.RULES).index("gradnorm")
    weights, new = formulas.decide(gradnorm, [1.0, 0.1], 1, 2, [], gram, [2.0, 1.0], states)
    assert weights == [1.0, 1.0]
    stepped = np.array([1 + 0.1 * 1, 1 - 0.1 * 3])
    np.testing.assert_allclose(new, [*(2 * stepped / stepped.sum()), 2.0, 2.0], rtol=1e-7)


@pytest.mark.parametrize("M", [2, 4])
@pytest.mark.parametrize(("number", "name"), list(enumerate(rules.RULES)))
def test_rules_equal_the_definition(formulas, number, name, M):
    kind = rules.RULES[name]
    parameters = [0.7, 0.3] if name != "equal_norms" else [0.7, 3.0]
    parameters = parameters[: kind.num_parameters]
    K = 1 if not kind.compares_losses else M + 1
    for _ in range(20):
        x = torch.randn(M, K, K + 1, dtype=torch.float64)
        gram, scores = x @ x.transpose(1, 2), torch.rand(M)
        losses, states = torch.rand(K), [torch.rand(K) for _ in range(kind.num_states)]
        statistic = scores if kind.reads == "scores" else gram
        rule = rules.Rule(name, tuple(parameters))
        expected, new = rules.weights(rule, statistic, losses, tuple(states))
        found, found_new = formulas.decide(
            *(number, parameters, M, K, scores.tolist(), gram.flatten().tolist()),
            *(losses.tolist(), [s.tolist() for s in states]),
        )
        np.testing.assert_allclose(found, expected.flatten(), rtol=2**-23)
        if new:
            np.testing.assert_allclose(found_new, torch.cat(new), rtol=2**-23)
