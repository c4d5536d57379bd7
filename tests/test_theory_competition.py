"""Modality competition: who wins a class, and what joint training loses to the best modality."""

import numpy as np
import pytest
import torch

from modgrad.balancers import OGM, FixedWeights, MMPareto
from modgrad.theory import (
    LateFusion,
    SparseCoding,
    alignment,
    error,
    feature_strength,
    predict_winners,
)

NETWORK = LateFusion(neurons=5, power=3, threshold=0.5)
HARD = SparseCoding((4.0, 1.01), (0.2, 0.02), noise=4.0, features=1000, clutter=0.1)


def start(data, seed, network=NETWORK, deviation=1e-3, samples=150):
    """Directions, samples, initial weights, and the generator for more samples."""
    generator = np.random.default_rng(seed)
    directions = data.directions(generator)
    drawn = data.draw(directions, samples, generator)
    return directions, drawn, network.initial(data, deviation, generator), generator


def learned(weights, directions):
    """Gamma [2, K]"""
    return np.stack([alignment(*pair) for pair in zip(weights, directions, strict=True)])


def duel(data, seeds, network=NETWORK, deviation=1e-3, steps=800):
    """Predicted winner, measured Gamma [2, K] and margin, of all classes of all seeds."""
    winners, gammas, margins = [], [], []
    for seed in range(seeds):
        directions, samples, initial, _ = start(data, seed, network, deviation)
        predicted = predict_winners(initial, directions, samples, network)
        weights = network.train(initial, samples, steps=steps, residual=0.0)
        alive = predicted.modality >= 0
        winners.append(predicted.modality[alive])
        margins.append(predicted.margin[alive])
        gammas.append(learned(weights, directions))
        gammas[-1] = gammas[-1][:, alive]
    return np.concatenate(winners), np.concatenate(gammas, 1), np.concatenate(margins)


def test_the_stronger_modality_wins():
    winner, gamma, _ = duel(SparseCoding((4.0, 1.01)), seeds=4)
    assert (gamma.argmax(0) == winner).mean() >= 0.95
    assert (winner == 0).mean() >= 0.9
    assert np.median(gamma.min(0) / gamma.max(0)) < 0.01


@pytest.mark.parametrize(
    ("data", "network"),
    [
        (SparseCoding((2.0, 2.0)), NETWORK),
        (SparseCoding((1.2, 1.2), classes=3), LateFusion(neurons=3, power=4, threshold=0.7)),
    ],
)
def test_winners_among_equals(data, network):
    """Equal magnitudes: the initialisation decides, and differs by class."""
    deviation = {3: 1e-3, 4: 0.05}[network.power]  # growth takes (1 / deviation)^(q - 2) steps
    winner, gamma, margin = duel(data, 6, network, deviation, steps=1000)
    right = gamma.argmax(0) == winner
    assert 0.2 < winner.mean() < 0.8
    assert right.mean() >= 0.9
    assert right[margin > 0.3].all()
    assert (margin > 0.3).sum() >= 6


def test_joint_training_is_worse_than_the_best_modality():
    directions, samples, initial, generator = start(HARD, 2, deviation=3e-4)
    test = HARD.draw(directions, 4000, generator)
    errors = {}
    for used in (("1", "2"), ("1",), ("2",)):
        weights = NETWORK.train(initial, samples, modalities=used)
        assert error(NETWORK.logits(weights, samples.features), samples.targets) < 0.01
        errors[used] = error(NETWORK.logits(weights, test.features), test.targets)
        if len(used) == 2:
            gamma = learned(weights, directions)
    # alone: what the insufficient samples cost, mu (1 - 1/K)
    assert errors["1",] == pytest.approx(0.15, abs=0.03)
    assert errors["2",] == pytest.approx(0.015, abs=0.01)
    assert 3 * errors["2",] < errors["1", "2"] < 1.05 * errors["1",]
    assert (
        gamma.argmax(0) == predict_winners(initial, directions, samples, NETWORK).modality
    ).all()

    # the winner slowed down: the loser is learned, and joint training as good as it is alone
    for balancer in (FixedWeights({"1": 0.1}), OGM(0.8)):
        weights = NETWORK.train(initial, samples, balancer=balancer)
        balanced = error(NETWORK.logits(weights, test.features), test.targets)
        assert balanced < 1.5 * errors["2",] < errors["1", "2"]
        assert learned(weights, directions)[1].mean() > 2 * gamma[1].mean()


@pytest.mark.parametrize("used", [("1", "2"), ("2",)])
def test_training_is_gradient_descent(used):
    """Against torch.autograd on the weights themselves."""
    data = SparseCoding((2.0, 1.5), (0.2, 0.1), noise=1.0, features=20, clutter=0.1)
    _, samples, initial, _ = start(data, 1, deviation=0.3, samples=15)
    weights = NETWORK.train(initial, samples, lr=0.5, steps=3, modalities=used, residual=0.0)
    layers = [torch.tensor(w, requires_grad=True) for w in initial]
    features = [torch.tensor(x) for x in samples.features]
    beta, q = NETWORK.threshold, NETWORK.power
    for _ in range(3):
        h = [torch.einsum("nd,dkh->nkh", x, w) for x, w in zip(features, layers, strict=True)]
        low = [x.clamp(0, beta) ** q / (q * beta ** (q - 1)) for x in h]
        parts = [(a + (x - beta).clamp(min=0)).sum(2) for a, x in zip(low, h, strict=True)]
        logits = sum(part for part, name in zip(parts, ("1", "2"), strict=True) if name in used)
        torch.nn.functional.cross_entropy(logits, torch.tensor(samples.targets)).backward()
        with torch.no_grad():
            for w in layers:
                if w.grad is not None:
                    w -= 0.5 * w.grad
                    w.grad = None
    for name, mine, theirs in zip(("1", "2"), weights, layers, strict=True):
        if name in used:
            np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)
        else:
            assert mine is None


class Spy:
    """Fixed weights that keep the statistics they were shown."""

    needs = frozenset({"scores", "response_losses", "grad_sq_norms", "param_sq_norms"})

    def __init__(self):
        self.inner, self.seen = FixedWeights({"1": 0.5}), []

    def init(self, *arguments):
        return self.inner.init(*arguments)

    def update(self, statistics, state):
        self.seen.append(statistics)
        return self.inner.update(statistics, state)


def test_what_a_balancer_reads():
    """Squared norms come from inner products; here from the weights of single steps."""
    _, samples, initial, _ = start(SparseCoding(noise=1.0, features=20), 2, deviation=0.3)
    runs = [NETWORK.train(initial, samples, lr=0.1, steps=t, balancer=Spy()) for t in (1, 2)]
    spy = Spy()
    NETWORK.train(initial, samples, lr=0.1, steps=2, balancer=spy)
    second = spy.seen[1]
    for m, factor in enumerate((0.5, 1.0)):
        before, after = runs[0][m], runs[1][m]
        assert second.param_sq_norms[m].item() == pytest.approx((before**2).sum(), rel=1e-10)
        step = ((after - before) / (0.1 * factor)) ** 2
        assert second.grad_sq_norms[m].item() == pytest.approx(step.sum(), rel=1e-8)
        alone = [w if i == m else None for i, w in enumerate(runs[0])]
        logits = torch.tensor(NETWORK.logits(alone, samples.features))
        own = logits.log_softmax(1)[torch.arange(len(logits)), torch.tensor(samples.targets)]
        assert second.scores[m].item() == pytest.approx(own.exp().mean().item(), rel=1e-6)
        assert second.response_losses[m].item() == pytest.approx(-own.mean().item(), rel=1e-6)


def test_balancers_that_cannot_act_here():
    _, samples, initial, _ = start(SparseCoding(), 0)
    with pytest.raises(ValueError, match=r"`balancer` reads \['gram'\]"):
        NETWORK.train(initial, samples, steps=1, balancer=MMPareto())
    with pytest.raises(ValueError, match="adds noise"):
        NETWORK.train(initial, samples, steps=1, balancer=OGM(noise=1.0))


def test_data():
    data = SparseCoding((4.0, 1.5), (0.5, 0.0), noise=0.0, clutter=0.1, sparsity=0.25)
    directions, samples, _, _ = start(data, 0, samples=20_000)
    for m, (M, top) in enumerate(zip(directions, (4.0, 1.5), strict=True)):
        np.testing.assert_allclose(M.T @ M, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(samples.features[m] @ M, samples.codes[m], atol=1e-12)
        own = samples.codes[m][np.arange(20_000), samples.targets]
        sufficient = own > 0
        assert own[sufficient].min() >= 1
        assert own.max() == pytest.approx(top, rel=0.01)
        # 4 standard deviations of a mean of 20,000 coins: 0.014
        assert sufficient.mean() == pytest.approx((0.5, 1.0)[m], abs=0.014)
        others = samples.codes[m][np.arange(4) != samples.targets[:, None]]
        assert others.max() <= 0.1
        assert (others > 0).mean() == pytest.approx(0.25, abs=0.014)


def test_the_activation_is_smooth_and_its_slope_the_derivative():
    x = np.linspace(-1, 2, 3001)
    for network in (NETWORK, LateFusion(power=5, threshold=1.2)):
        differences = np.diff(network.activation(x)) / 1e-3
        # the mean slope of an interval, to second order: 1e-6 / 24 times s'' < (q - 1)(q - 2) / b^2
        middle = network.slope((x[1:] + x[:-1]) / 2)
        np.testing.assert_allclose(differences, middle, atol=3e-3)


def test_feature_strength_and_dead_classes():
    codes = np.array([[2.0, 0.5], [0.1, 1.0], [1.0, 0.0]])
    strength = feature_strength(codes, np.array([0, 1, 0]), NETWORK)
    assert strength == pytest.approx([(8 + 1) / (3 * 0.25), 1 / (3 * 0.25)])
    _, samples, initial, _ = start(SparseCoding(), 0)
    directions = tuple(np.zeros(w.shape[:2]) for w in initial)
    nobody = predict_winners(initial, directions, samples, NETWORK)
    assert (nobody.modality == -1).all()
    assert (nobody.margin == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseCoding((0.5, 1.0)), "`magnitudes` is"),
        (lambda: SparseCoding(insufficient=(0.0, 1.5)), "`insufficient` is"),
        (lambda: SparseCoding(classes=1), "`classes` is 1"),
        (lambda: SparseCoding(features=3), "`features` is 3"),
        (lambda: SparseCoding(noise=-1.0), "`noise` is -1.0"),
        (lambda: LateFusion(power=2), "`power` is 2"),
        (lambda: LateFusion(neurons=0), "`neurons` is 0"),
        (lambda: LateFusion(threshold=0.0), "`threshold` is 0.0"),
        (lambda: NETWORK.train(*reversed(start(SparseCoding(), 0)[1:3]), lr=0.0), "`lr` is 0.0"),
        (
            lambda: NETWORK.train(*reversed(start(SparseCoding(), 0)[1:3]), modalities=("3",)),
            r"`modalities` is \['3'\]",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
