"""A modality that is never learned: few samples, late fusion.

Linear regression on two modalities of 50 features: where one alone fits the training samples, late
fusion never learns the other. Zhang, Latham and Saxe, Understanding Unimodal Bias in Multimodal
Deep Linear Networks, ICML 2024.
"""

import sys

import numpy as np
from report import Report

from modgrad import EqualNorms
from modgrad.figures import LEGEND, LINES
from modgrad.theory import DeepLinear, SecondOrder, predict_unimodal_phase

D = 50
POPULATION = SecondOrder(
    {"A": D, "B": D},
    np.diag([3.0] * D + [1.0] * D),
    np.array([0.3] * D + [0.1] * D),
    power=4 * D * 0.01 + 0.25,
)
OPTIONS = {"init": 5e-8, "lr": 0.04, "initialise": "random"}


def problem(samples, seed):
    """y = 0.1 sum(x) + noise of deviation 0.5; variances 3 and 1."""
    generator = np.random.default_rng(seed)
    x = {"A": generator.normal(0, 3**0.5, (samples, D)), "B": generator.normal(0, 1, (samples, D))}
    y = 0.1 * (x["A"].sum(1) + x["B"].sum(1)) + generator.normal(0, 0.5, samples)
    return SecondOrder.of_samples(x, y, centred=False)


def population_error(totals):
    """[T + 1, N], without the noise of the target."""
    gap = totals - POPULATION.solution[:, 0]
    return np.einsum("tnd,d->tn", gap**2, np.diag(POPULATION.covariance)) / 2


def train(problems, fusion, **options):
    network = DeepLinear(2, fusion, width=100)
    return network.train(problems, steps=4000, tolerance=1e-14, **OPTIONS, **options)


def compare(report, samples, seeds):
    """Late and early fusion, and their errors; a row on the final ones."""
    problems = [problem(samples, seed) for seed in range(seeds)]
    runs = {"late fusion": train(problems, 2), "early fusion": train(problems, 1)}
    errors = {kind: population_error(run.totals) for kind, run in runs.items()}
    late, early = (error[-1].mean() for error in errors.values())
    same = samples > 2 * D
    good = abs(late / early - 1) < 0.01 if same else late > 1.2 * early
    expected, obtained = "equal" if same else "late is worse", f"{late:.3f} / {early:.3f}"
    report.row(f"{samples} samples: error, late / early fusion", expected, obtained, bool(good))
    return problems, runs, errors


def interpolation(report, axes, seeds):
    """30 samples: A alone fits them."""
    problems, runs, errors = compare(report, 30, seeds)
    loss = max(run.losses()[-1].max() for run in runs.values())
    report.row("30 samples: largest training loss", "< 1e-12", f"{loss:.0e}", bool(loss < 1e-12))
    settings = {"depth": 2, "fusion_layer": 2, "init": OPTIONS["init"]}
    never = sum(predict_unimodal_phase(s, **settings).permanent for s in problems)
    what = "30 samples: seeds predicted to be permanent"
    report.row(what, f"{seeds}", f"{never}", never == seeds)
    runs["equal norms"] = train(problems, 2, balancer=EqualNorms(cap=1e6))
    for kind, run in runs.items():
        parts = run.norms("B")[-1] / run.norms("A")[-1]
        late = kind == "late fusion"
        worst = parts.max() if late else parts.min()
        good = worst < 1e-4 if late else worst > 0.2
        what = f"30 samples, {kind}: worst |W_B| / |W_A|"
        report.row(what, "< 1e-4" if late else "> 0.2", f"{worst:.2g}", bool(good))
    value = population_error(runs["equal norms"].totals)[-1].mean()
    good = bool(value < errors["late fusion"][-1].mean())
    report.row("30 samples, equal norms: error", "below late", f"{value:.3f}", good)
    for (kind, run), style in zip(runs.items(), LINES, strict=False):
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        for modality, width in (("A", 1.0), ("B", 2.2)):
            curve = run.norms(modality)[:400].mean(1)
            axes.plot(curve, linewidth=width, label=f"{kind}, {modality}", **line)
    axes.set(xlabel="step", ylabel="norm of a modality's weights")
    axes.set_title(f"30 samples, 50 features each\n(mean of {seeds} seeds)", fontsize=11)
    axes.legend(**LEGEND)


def main(argv=None):
    report = Report("permanent_bias", __doc__, argv)
    seeds = 2 if report.quick else 5
    figure, axes = report.axes(2)
    styles = iter(LINES)
    for samples in report.track((30, 70, 700), "training"):
        if samples == 30:
            interpolation(report, axes[0], seeds)
            continue
        problems, _, errors = compare(report, samples, seeds)
        for (kind, error), style in zip(errors.items(), styles, strict=False):
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            axes[1].plot(error[:1500].mean(1), label=f"{kind}, {samples} samples", **line)
    phase = [np.concatenate([s.alone("A"), np.zeros((D, 1))])[:, 0] for s in problems]
    plateau = population_error(np.stack(phase)[None]).mean()
    theory = 0.25 + 0.75 / 2 * D / (700 - D - 1)
    good = bool(abs(plateau / theory - 1) < 0.05)
    report.row("700 samples: error in the phase", f"{theory:.3f}", f"{plateau:.3f}", good)
    axes[1].set(xlabel="step", ylabel="error on the population", ylim=(0, None))
    axes[1].set_title("More samples than features of A", fontsize=11)
    axes[1].legend(**LEGEND)
    return report.finish(figure)


if __name__ == "__main__":
    sys.exit(main())
