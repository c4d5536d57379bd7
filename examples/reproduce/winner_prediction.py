"""Which modality learns a class: predicted from the initialisation, then trained.

A late-fusion network on sparse codes: Huang et al., Modality Competition: What Makes Joint Training
of Multi-modal Network Fail in Deep Learning? (Provably), ICML 2022.
"""

import sys

import numpy as np
from report import Report

from modgrad.figures import FILLS, LEGEND
from modgrad.theory import LateFusion, SparseCoding, alignment, predict_winners

NETWORK = LateFusion(neurons=5, power=3, threshold=0.5)
TASKS = {"4 : 1.01": (4.0, 1.01), "2 : 2": (2.0, 2.0), "1.5 : 1.5": (1.5, 1.5)}


def classes(data, seed):
    """Predicted winners and margins, and Gamma [2, K] after training."""
    generator = np.random.default_rng(seed)
    directions = data.directions(generator)
    samples = data.draw(directions, 150, generator)
    initial = NETWORK.initial(data, 1e-3, generator)
    predicted = predict_winners(initial, directions, samples, NETWORK)
    weights = NETWORK.train(initial, samples, steps=800, residual=0.0)
    gamma = np.stack([alignment(*pair) for pair in zip(weights, directions, strict=True)])
    return predicted.modality, predicted.margin, gamma


def main(argv=None):
    report = Report("winner_prediction", __doc__, argv)
    seeds = 3 if report.quick else 20
    figure, (axes,) = report.axes(1)
    for (task, magnitudes), (colour, _), marker in zip(TASKS.items(), FILLS, "os^", strict=False):
        runs = [
            classes(SparseCoding(magnitudes), seed) for seed in report.track(range(seeds), task)
        ]
        winner, margin = (np.concatenate([run[i] for run in runs]) for i in range(2))
        gamma = np.concatenate([run[2] for run in runs], 1)
        alive = winner >= 0  # a class without a neuron on the right side is learned by nobody
        winner, margin, gamma = winner[alive], margin[alive], gamma[:, alive]
        right = gamma.argmax(0) == winner
        clear = margin > 0.3
        loser = np.median(gamma.min(0) / gamma.max(0))
        report.row(f"{task}: right of {len(right)} classes", ">= 90 %", f"{right.mean():.1%}",
                   bool(right.mean() >= 0.9))  # fmt: skip
        report.row(f"{task}: right of the {clear.sum()} clear ones", "100 %",
                   f"{right[clear].mean():.1%}", bool(right[clear].all()))  # fmt: skip
        gate = bool(loser < 0.01) if magnitudes[0] > 3 else None
        report.row(f"{task}: median Gamma, loser / winner", "< 0.01" if gate is not None else "",
                   f"{loser:.2g}", gate)  # fmt: skip
        side = np.where(winner == 0, 1, -1) * np.minimum(margin, 4)
        measured = np.log10(np.maximum(gamma[0], 1e-4) / np.maximum(gamma[1], 1e-4))
        axes.scatter(side, measured, 28, colour, marker=marker, edgecolors="black", linewidths=0.6,
                     label=f"magnitudes {task}")  # fmt: skip
    axes.axhline(0, color="0.6", linewidth=1)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set(
        xlabel="predicted: log of modality 1's lead over 2 (at most 4)",
        ylabel="measured: log10 of Gamma of 1 / Gamma of 2",
    )
    axes.set_title(f"Who learns a class ({seeds} seeds)", fontsize=11)
    axes.legend(**LEGEND)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
