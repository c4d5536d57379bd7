"""AGM over steps by hand, and the gradients that its weights lead to."""

import math
from itertools import combinations

import fusion
import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modgrad import AGM, masked, mono_modal_responses, scale_backward
from modgrad.balancers import Statistics

TWO, THREE = ("audio", "visual"), ("audio", "visual", "text")
BOTH = pytest.mark.parametrize("modalities", [TWO, THREE], ids=len)
EVERY_FUSION = pytest.mark.parametrize("fused", fusion.FUSIONS)


def run(balancer, losses):
    state = balancer.init(TWO, 1, torch.device("cpu"))
    out = []
    for step, values in enumerate(losses):
        statistics = Statistics(
            torch.tensor(step), torch.tensor(0), response_losses=torch.tensor(values)
        )
        modulation, state = balancer.update(statistics, state)
        out.append(modulation.weights[:, 0].tolist())
    return out


def test_the_reference_is_the_running_mean_before_the_step():
    e, exp = math.e, math.exp
    found = run(AGM(), [[0.5, 1.5], [1.0, 1.0], [2.0, 0.5]])
    expected = [
        [exp(1 - e), exp(1 - 1 / e)],  # tau = 1, r = exp(2 (1 - s))
        [exp(e - 1), exp(1 / e - 1)],  # tau of (0.5, 1.5), r = 1
        # tau of (0.75, 1.25), r of (2, 0.5), whose mean is 1.25
        [exp(exp(0.5) - exp(-1.5)), exp(exp(-0.5) - exp(1.5))],
    ]
    np.testing.assert_allclose(found, expected, rtol=2**-23)


def test_a_steady_lead_is_left_alone():
    assert run(AGM(alpha=2.0), [[0.25, 1.5]] * 5)[1:] == [[1.0, 1.0]] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_leaves_no_trace(bad):
    good = [[0.5, 1.5], [1.0, 1.0], [2.0, 0.5]]
    found = run(AGM(), [[bad, 1.0], *good[:2], [1.0, bad], [bad, bad], good[2]])
    plain = run(AGM(), good)
    assert found == [[1.0, 1.0], *plain[:2], [1.0, 1.0], [1.0, 1.0], plain[2]]


def test_the_largest_weight_is_a_number():
    (weights,) = run(AGM(alpha=0.88, cap=100.0), [[0.0, 18.0]])
    assert weights[0] == pytest.approx(math.exp(-88), rel=1e-6)
    # tau falls from e^18 to e^-18, r the other way
    weights = run(AGM(alpha=0.88, cap=100.0), [[0.0, 18.0], [18.0, 0.0]])[1]
    assert weights == pytest.approx([math.exp(88), math.exp(-88)], rel=1e-6)


def test_bad_modalities():
    with pytest.raises(ValueError, match="allowed: at least 2"):
        AGM().init(("audio",), 1, torch.device("cpu"))


def coefficients(kappa, modalities):
    """Of each f(S), by autograd through what a user calls; kappa in the modalities' order."""
    sets = [frozenset(s) for n in range(1, 4) for s in combinations(modalities, n)]
    leaves = {s: torch.zeros(1, dtype=torch.float64, requires_grad=True) for s in sets}
    responses = scale_backward(
        mono_modal_responses(leaves.get, modalities), torch.tensor(kappa).float()
    )
    sum(responses.values()).sum().backward()
    return {"".join(m[0] for m in modalities if m in s): leaves[s].grad.item() for s in sets}


def test_coefficients_of_the_surrogate():
    two = coefficients((1.75, 0.25), TWO)
    assert two == {"av": 1.0, "a": 0.75, "v": -0.75}
    # thirds and sixths, rounded: a few eps
    three = coefficients((1.0, 2.0, 3.0), ("audio", "visual", "text"))
    expected = {"avt": 2, "av": -0.5, "at": 0, "vt": 0.5, "a": -0.5, "v": 0, "t": 0.5}
    assert three == pytest.approx(expected, abs=4 * 2**-52)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def total(responses, kappa):
    weights = torch.tensor(kappa[: len(responses)])
    return sum(scale_backward(responses, weights).values())


@EVERY_FUSION
@BOTH
def test_gradients_are_those_of_the_surrogate(fused, modalities):
    model = fusion.FUSIONS[fused](modalities).double().eval()
    inputs, targets = networks.batch(modalities, dtype=torch.float64)
    kappa = (1.75, 0.25, 3.0)

    def forward(present):
        return model(masked(inputs, present))

    responses = mono_modal_responses(forward, modalities)
    found = gradients(model, F.cross_entropy(total(responses, kappa), targets))
    g = (model(inputs).softmax(1) - F.one_hot(targets, 4)).detach() / len(targets)
    c = coefficients(kappa[: len(modalities)], modalities)
    surrogate = 0
    for letters, weight in c.items():
        present = [m for m in modalities if m[0] in letters]
        surrogate = surrogate + (g * weight * forward(present)).sum()
    for a, b in zip(found, gradients(model, surrogate), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@EVERY_FUSION
@BOTH
def test_weights_of_one_are_plain_training(fused, modalities):
    model = fusion.FUSIONS[fused](modalities).double().eval()
    inputs, targets = networks.batch(modalities, dtype=torch.float64)
    responses = mono_modal_responses(lambda s: model(masked(inputs, s)), modalities)
    found = gradients(model, F.cross_entropy(total(responses, (1.0, 1.0, 1.0)), targets))
    plain = gradients(model, F.cross_entropy(model(inputs), targets))
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@BOTH
def test_encoders_that_make_zero_of_zero_are_scaled_by_their_weight(modalities):
    model = fusion.Additive(modalities).double()
    inputs, targets = networks.batch(modalities, dtype=torch.float64)
    kappa = (1.75, 0.25, 3.0)
    responses = mono_modal_responses(lambda s: model(masked(inputs, s)), modalities)
    found = gradients(model, F.cross_entropy(total(responses, kappa), targets))
    plain = gradients(model, F.cross_entropy(model(inputs), targets))
    for i, (a, b) in enumerate(zip(found, plain, strict=True)):
        torch.testing.assert_close(a, kappa[i // 2] * b, rtol=0, atol=1e-13)
