"""How long the second modality waits, against fusion layer and correlation.

Deep linear networks of two scalar modalities with deviations r : 1, correlation rho and layers of
initial norm u. Zhang, Latham and Saxe, Understanding Unimodal Bias
in Multimodal Deep Linear Networks, ICML 2024.
"""

import sys

import numpy as np
import relu_network
from report import Report

from modgrad import EqualNorms
from modgrad.balancers import FixedWeights
from modgrad.figures import LEGEND, LINES
from modgrad.theory import DeepLinear, SecondOrder, predict_unimodal_phase

DEVIATIONS = (3.0, 2.0, 1.5)
DEPTH, INIT, LR = 4, 0.1, 0.02


def ratio(network, problems, **options):
    """t_B / t_A by simulation; the ratio of each problem."""
    times = network.train(problems, **options).half_times("A")
    return times["B"] / times["A"]


def predicted(problems, fusion, depth=DEPTH, **options):
    options = {"init": INIT, "lr": LR} | options
    predictions = [
        predict_unimodal_phase(s, depth=depth, fusion_layer=fusion, **options) for s in problems
    ]
    return np.array([p.ratio for p in predictions])


def by_correlation(report, axes):
    """Two layers, late fusion, random initialisation: small, as corrections are of 1 / log(1/u)."""
    correlations = np.linspace(-0.9, 0.9, 3 if report.quick else 9)
    network, init, lr = DeepLinear(2, 2, width=100), 1e-16, 0.02
    for deviation, style in zip(
        report.track(DEVIATIONS, "against correlation"), LINES, strict=False
    ):
        problems = [SecondOrder.toy(deviation, rho) for rho in correlations]
        options = {"init": init, "lr": lr, "steps": 50_000, "initialise": "random"}
        obtained = ratio(network, problems, **options)
        expected = predicted(problems, 2, depth=2, init=init, lr=lr)
        fine = [SecondOrder.toy(deviation, rho) for rho in np.linspace(-0.92, 0.92, 93)]
        axes.plot(
            np.linspace(-0.92, 0.92, 93),
            predicted(fine, 2, depth=2, init=init, lr=lr),
            color=style["color"],
            linestyle=style["linestyle"],
        )
        label = f"standard deviations {deviation:g} : 1"
        axes.plot(correlations, obtained, style["marker"], color=style["color"], label=label)
        for rho in (-0.9, 0.0, 0.9):
            i = int(np.abs(correlations - rho).argmin())
            off = abs(obtained[i] / expected[i] - 1)
            what = f"late fusion of 2 layers, {deviation:g} : 1, rho = {rho:g}"
            report.row(what, f"{expected[i]:.2f}", f"{obtained[i]:.2f}", off < 0.025)
        with_relus(report, axes, deviation, correlations)
    axes.set(xlabel="correlation of the modalities", ylabel="time of B / time of A", yscale="log")
    axes.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    axes.minorticks_off()
    axes.set_title("Two layers, late fusion\n(lines: theory, markers: training)", fontsize=11)
    axes.legend(loc="upper center", **LEGEND)


def with_relus(report, axes, deviation, correlations):
    """Half of the samples wake a neuron: the learning rate of a linear network is half as large."""
    init, lr = 1e-16, 0.02
    problems = [SecondOrder.toy(deviation, rho) for rho in correlations]
    expected = predicted(problems, 2, depth=2, init=init, lr=lr / 2)
    # t_A times the ratio, and what training takes to end
    times = -np.log(init) / (lr / 2 * deviation * (deviation + correlations)) * expected
    obtained = [
        relu_network.ratio(deviation, rho, init=init, lr=lr, steps=int(1.3 * t + 3000))
        for rho, t in zip(correlations, times, strict=True)
    ]
    off = np.abs(obtained / expected - 1).max()
    what = f"the same with ReLUs, {deviation:g} : 1: largest error"
    report.row(what, "< 2.5 %", f"{100 * off:.1f} %", bool(off < 0.025))
    label = "with ReLUs" if deviation == DEVIATIONS[-1] else None
    axes.plot(correlations, obtained, "+", color="black", markersize=13, label=label)


def by_fusion_layer(report, axes):
    layers = range(1, DEPTH + 1)
    problems = [SecondOrder.toy(2, rho) for rho in (0, 0.5, -0.5)]
    for init, style in zip((0.1,) if report.quick else (0.1, 0.03), LINES, strict=False):
        steps = 9000 if init == 0.1 else 45_000
        obtained = np.array(
            [
                ratio(DeepLinear(DEPTH, F), problems, init=init, lr=LR, steps=steps)
                for F in report.track(layers, f"against fusion layer, initial norm {init}")
            ]
        )
        expected = np.array([predicted(problems, F, init=init) for F in layers])
        axes.plot(layers, expected[:, 0], color=style["color"], linestyle=style["linestyle"])
        label = f"initial norm {init}"
        axes.plot(layers, obtained[:, 0], style["marker"], color=style["color"], label=label)
        for F in layers:
            gate = 0.015 if F == DEPTH else 0.08 if init == 0.1 else 0.02
            for n, rho in enumerate((0, 0.5, -0.5)):
                if rho and init != 0.1:
                    continue
                off = abs(obtained[F - 1, n] / expected[F - 1, n] - 1)
                what = f"fusion at {F} of 4 layers, u = {init}, rho = {rho:g}"
                good = None if F == 1 and init == 0.1 else off < gate  # early: 1 as u goes to 0
                report.row(what, f"{expected[F - 1, n]:.3f}", f"{obtained[F - 1, n]:.3f}", good)
    axes.set(xlabel="fusion layer (1 early, 4 late)", ylabel="time of B / time of A")
    axes.set_xticks(list(layers))
    axes.set_title("Four layers, uncorrelated, 2 : 1", fontsize=11)
    axes.legend(**LEGEND)


def balanced(report, axes):
    """Late fusion with a balancer: the weight of A's gradient that ends the phase is w_B / w_A."""
    problem = SecondOrder.toy(2)
    weights = np.array([1.0, 0.5, 0.25, 0.15])
    options = {"init": INIT, "lr": LR, "steps": 9000}
    network, obtained = DeepLinear(DEPTH, DEPTH), []
    expected = [
        predict_unimodal_phase(
            problem, depth=DEPTH, fusion_layer=DEPTH, init=INIT, lr=LR, weights={"A": weight}
        )
        for weight in weights
    ]
    for weight, p in zip(report.track(weights, "with a balancer"), expected, strict=True):
        run = network.train([problem], balancer=FixedWeights({"A": float(weight)}), **options)
        times = run.half_times(p.first)
        obtained.append(float(times["B"][0] / times["A"][0]))
        theory = p.ratio if p.first == "A" else 1 / p.ratio
        off = abs(obtained[-1] / theory - 1)
        what = f"late fusion of 4, gradient of A x {weight:g}"
        report.row(what, f"{theory:.3f}", f"{obtained[-1]:.3f}", off < 0.015)
    equal = float(ratio(network, [problem], balancer=EqualNorms(cap=1e6), **options)[0])
    report.row("late fusion of 4, equal norms", "1.000", f"{equal:.3f}", abs(equal - 1) < 0.02)
    fine = np.linspace(0.14, 1.02, 60)
    curve = [c * 4 if c > 0.25 else 1 / (1 + (1 - 4 * c) / (4 * c)) for c in fine]
    axes.plot(fine, curve, color="black", label="theory")
    axes.plot(weights, obtained, "o", color="black", label="FixedWeights")
    axes.axhline(equal, color="#D55E00", linestyle="--", label="equal gradient norms")
    axes.set(xlabel="weight of A's gradient", ylabel="time of B / time of A")
    axes.set_title("Late fusion with a balancer", fontsize=11)
    axes.legend(**LEGEND)


def main(argv=None):
    report = Report("phase_ratio", __doc__, argv)
    figure, (first, second, third) = report.axes(3)
    by_correlation(report, first)
    by_fusion_layer(report, second)
    balanced(report, third)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
