"""GradNorm: the gradient of the weights, and a run of several steps."""

import math

import numpy as np
import torch

from modgrad.balancers import Between, GradNorm, Statistics

CPU = torch.device("cpu")


def statistics(losses, norms, step=0):
    """Gradients of these norms, their squares split over two modalities 1 : 3."""
    squares = torch.diag(torch.tensor(norms, dtype=torch.float64) ** 2)
    gram = torch.stack([squares / 4, squares * 3 / 4])
    return Statistics(torch.tensor(step), torch.tensor(0), losses=torch.tensor(losses), gram=gram)


def run(balancer, steps):
    state = balancer.init(("audio", "visual"), len(steps[0][0]), CPU)
    out = []
    for i, (losses, norms) in enumerate(steps):
        modulation, state = balancer.update(statistics(losses, norms, i), state)
        out.append(modulation.weights.tolist())
    return np.array(out), state


def test_by_hand():
    """Losses (2, 1) from (2, 2), norms (1, 3): mean G 2, r (4/3, 2/3), targets (8/3, 4/3): the
    gradient is (-1, +3)."""
    lr = 0.1
    start = GradNorm(alpha=1.0, lr=lr).init(("audio", "visual"), 2, CPU)
    start = start._replace(initial=torch.tensor([2.0, 2.0]))
    modulation, state = GradNorm(alpha=1.0, lr=lr).update(
        statistics([2.0, 1.0], [1.0, 3.0], 1), start
    )
    assert modulation.weights.tolist() == [1.0, 1.0]
    expected = np.array([1 + lr, 1 - 3 * lr]) * 2 / (2 - 2 * lr)
    np.testing.assert_allclose(state.weights, expected, rtol=4 * 2**-24)


def test_the_first_losses_are_kept():
    _, state = run(GradNorm(), [([2.0, 3.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 1.0])])
    assert state.initial.tolist() == [2.0, 3.0]
    late = Between(GradNorm(), start=1)
    _, state = run(late, [([2.0, 3.0], [1.0, 1.0]), ([1.0, 4.0], [1.0, 1.0])])
    assert state.initial.tolist() == [1.0, 4.0], "the first of the window"


def test_a_run_against_the_paper():
    rng = np.random.default_rng(0)
    alpha, lr, K = 1.5, 0.02, 3
    steps = [(list(rng.uniform(0.1, 3, K)), list(rng.uniform(0.1, 3, K))) for _ in range(50)]
    found, _ = run(GradNorm(alpha, lr), steps)
    w = np.ones(K)
    for i, (losses, norms) in enumerate(steps):
        # a rounding or two of float32 a step, and no step is taken the other way
        np.testing.assert_allclose(found[i], w, rtol=4 * 2**-24 * (i + 1))
        G = w * np.array(norms)
        ratios = np.array(losses) / np.array(steps[0][0])
        target = G.mean() * (ratios / ratios.mean()) ** alpha

        def objective(w, norms=norms, target=target):
            return np.abs(w * np.array(norms) - target).sum()

        h = 1e-6
        gradient = [(objective(w + h * e) - objective(w - h * e)) / (2 * h) for e in np.eye(K)]
        np.testing.assert_allclose(gradient, np.sign(G - target) * norms, rtol=1e-6)
        w = np.maximum(w - lr * np.sign(G - target) * norms, 1e-3)
        w *= K / w.sum()


def test_weights_stay_positive_and_sum_to_the_number_of_losses():
    found, _ = run(GradNorm(lr=10.0), [([1.0, 2.0, 3.0], [5.0, 1.0, 0.1])] * 20)
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(1), 3, rtol=3 * 2**-23)


def test_a_step_that_is_not_finite_changes_nothing():
    good = ([2.0, 3.0], [1.0, 3.0])
    plain, _ = run(GradNorm(), [good, good, good])
    for bad in (([math.nan, 1.0], [1.0, 1.0]), ([1.0, 1.0], [math.inf, 1.0])):
        found, _ = run(GradNorm(), [good, bad, good, good])
        np.testing.assert_array_equal(found[[0, 2, 3]], plain)
    first_bad, state = run(GradNorm(), [([math.nan, 1.0], [1.0, 1.0]), good, good])
    assert np.isfinite(first_bad).all()
    assert state.initial.tolist() == [2.0, 1.0]


def test_the_loss_that_lags_gains():
    found, _ = run(GradNorm(), [([1.0, 1.0], [1.0, 1.0])] + [([0.9, 0.2], [1.0, 1.0])] * 10)
    assert found[-1][0] > 1 > found[-1][1]
