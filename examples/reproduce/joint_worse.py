"""Joint training is worse than the best modality alone; a balancer mends that.

Two modalities of which the strong one cannot tell the class of 20 % of the samples, the weak one of
2 %. Huang et al., Modality Competition: What Makes Joint Training of Multi-modal Network Fail in
Deep Learning? (Provably), ICML 2022.
"""

import sys
from statistics import mean

import numpy as np
from report import Report

from modgrad.balancers import OGM, FixedWeights
from modgrad.figures import FILLS
from modgrad.theory import LateFusion, SparseCoding, alignment, error, predict_winners

NETWORK = LateFusion(neurons=5, power=3, threshold=0.5)
DATA = SparseCoding((4.0, 1.01), (0.2, 0.02), noise=4.0, features=1000, clutter=0.1)
METHODS = {
    "1 alone": {"modalities": ("1",)},
    "2 alone": {"modalities": ("2",)},
    "joint": {},
    "joint, OGM(0.8)": {"balancer": OGM(0.8)},
    "joint, 0.1 x gradient of 1": {"balancer": FixedWeights({"1": 0.1})},
}


def run(seed, track):
    """Test errors by method, the largest training error, and per class: is the winner right."""
    generator = np.random.default_rng(seed)
    directions = DATA.directions(generator)
    samples = DATA.draw(directions, 150, generator)
    initial = NETWORK.initial(DATA, 3e-4, generator)
    test = DATA.draw(directions, 4000, generator)
    predicted = predict_winners(initial, directions, samples, NETWORK)
    errors, train, gammas = {}, {}, {}
    for method, options in track(METHODS.items(), f"seed {seed}"):
        weights = NETWORK.train(initial, samples, **options)
        errors[method] = error(NETWORK.logits(weights, test.features), test.targets)
        train[method] = error(NETWORK.logits(weights, samples.features), samples.targets)
        if method.startswith("joint"):
            gamma = [alignment(*pair) for pair in zip(weights, directions, strict=True)]
            gammas[method] = np.stack(gamma)
    # where one side starts dead, samples' noise may still wake it: no prediction
    certain = np.isfinite(predicted.margin) & (predicted.modality >= 0)
    right = (gammas["joint"].argmax(0) == predicted.modality)[certain]
    return errors, train, gammas, right


def main(argv=None):
    report = Report("joint_worse", __doc__, argv)
    seeds = 1 if report.quick else 6
    runs = [run(seed, report.track) for seed in range(seeds)]
    errors = {method: [r[0][method] for r in runs] for method in METHODS}
    means = {method: mean(values) for method, values in errors.items()}
    right = np.concatenate([r[3] for r in runs])

    def row(what, expected, value, good):
        report.row(what, expected, f"{value:.3f}", None if good is None else bool(good))

    trained = max(r[1]["joint"] for r in runs)
    row("joint: largest training error", "< 0.01", trained, trained < 0.01)
    row("test error, 1 alone", "0.150", means["1 alone"], abs(means["1 alone"] - 0.15) < 0.03)
    row("test error, 2 alone", "0.015", means["2 alone"], abs(means["2 alone"] - 0.015) < 0.01)
    worse = all(
        3 * b < j < 1.05 * a
        for a, b, j in zip(errors["1 alone"], errors["2 alone"], errors["joint"], strict=True)
    )
    row("test error, joint, in every seed", "> 3 x the best", means["joint"], worse)
    row("classes whose winner is as predicted", ">= 0.9", right.mean(), right.mean() >= 0.9)
    for method in list(METHODS)[3:]:
        row(f"test error, {method}", "< joint", means[method], means[method] < means["joint"])
    for method in list(METHODS)[2:]:
        weak = np.median(np.concatenate([r[2][method][1] for r in runs]))
        row(f"{method}: median Gamma of modality 2", "", weak, None)

    figure, (axes,) = report.axes(1)
    figure.set_size_inches(8, 4.2)
    for place, method in enumerate(METHODS):
        colour, hatch = FILLS[min(place, 3) if place < 3 else 3]
        style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
        axes.bar(place, 100 * means[method], 0.6, **style)
        axes.plot([place] * seeds, [100 * x for x in errors[method]], "k_", markersize=12)
    labels = [method.replace(", ", ",\n") for method in METHODS]
    axes.set_xticks(range(len(METHODS)), labels, fontsize=9)
    axes.set(ylabel="test error (%)")
    axes.set_title(f"Bars: mean of {seeds} seeds; marks: single seeds", fontsize=11)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
