"""The figure: what each method reaches, and how the neglected branch gets there."""

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.ticker import MaxNLocator

from modgrad import figures
from modgrad.demo.methods import ALONE, PLAIN
from modgrad.demo.results import Results
from modgrad.demo.summary import MANY, lost

OUTPUTS = dict(zip(("joint", "audio", "visual"), figures.FILLS, strict=False))
BAR = 0.27
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}
LEGEND = {**figures.LEGEND, "columnspacing": 1.2}


def save(results: Results, path: Path) -> None:
    many = len(results.options.balancers) > MANY
    height = 1.6 + 0.28 * len(results.options.balancers) if many else 4.2
    figure = figures.new(8 if many else 11, height)
    if many:
        _dots(figure.subplots(), results)
    else:
        bars, lines = figure.subplots(1, 2)
        _bars(bars, results)
        _lines(lines, results)
    figure.savefig(path, dpi=150)


def _bars(axes: Any, results: Results) -> None:
    accuracy = results.accuracy()
    methods = [PLAIN, *results.options.balancers]
    for shift, (output, (colour, hatch)) in enumerate(OUTPUTS.items(), start=-1):
        places = [place + shift * BAR for place in range(len(methods))]
        values = [accuracy[method][output] for method in methods]
        means = [100 * value.mean for value in values]
        errors = [100 * (value.std or 0) for value in values]
        label = "joint" if output == "joint" else f"{output} branch"
        style = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
        axes.bar(places, means, BAR, label=label, **style)
        if results.options.seeds > 1:
            axes.errorbar(places, means, errors, fmt="none", ecolor="black", capsize=3)
        for place, value in zip(places, means, strict=True):
            axes.text(place, 3, f"{value:.0f}", ha="center", bbox=PAPER, fontsize=9)
        if output in ALONE:
            ceiling = 100 * accuracy[ALONE[output]][output].mean
            ends = [place - BAR / 2 for place in places], [place + BAR / 2 for place in places]
            once = "trained alone (ceiling)" if output == "audio" else None
            axes.hlines([ceiling] * len(places), *ends, "black", "dashed", label=once)
    axes.set_xticks(range(len(methods)), methods)
    axes.set(ylabel="test accuracy (%)", ylim=(0, 100))
    seeds = results.options.seeds
    spread = f"\n(mean and standard deviation of {seeds} seeds)" if seeds > 1 else ""
    axes.set_title(f"After training{spread}", fontsize=11)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, **LEGEND)
    figures.without_frame(axes)


def _dots(axes: Any, results: Results) -> None:
    """A row a method, the best joint accuracy on top."""
    accuracy = results.accuracy()
    methods = sorted([PLAIN, *results.options.balancers], key=lambda m: accuracy[m]["joint"].mean)
    for marker, (output, (colour, _)) in zip("osD", OUTPUTS.items(), strict=True):
        values = [accuracy[method][output] for method in methods]
        means = [100 * value.mean for value in values]
        errors = [100 * (value.std or 0) for value in values]
        label = "joint" if output == "joint" else f"{output} branch"
        style = {"color": colour, "markeredgecolor": "black", "ecolor": "black", "capsize": 2}
        axes.errorbar(means, range(len(methods)), xerr=errors, fmt=marker, label=label, **style)
        if output in ALONE:
            ceiling = 100 * accuracy[ALONE[output]][output].mean
            line = "--" if output == "audio" else ":"
            label = f"{output} trained alone (ceiling)"
            axes.axvline(ceiling, color="black", linewidth=1, linestyle=line, label=label)
    axes.set_yticks(range(len(methods)), methods)
    axes.set(xlabel="test accuracy (%)", xlim=(0, 100))
    axes.grid(axis="y", linewidth=0.4)
    seeds = results.options.seeds
    spread = f" (mean and standard deviation of {seeds} seeds)" if seeds > 1 else ""
    axes.set_title(f"After training{spread}", fontsize=11)
    axes.figure.legend(loc="outside lower center", ncols=3, **LEGEND)
    figures.without_frame(axes)


def _lines(axes: Any, results: Results) -> None:
    modality = lost(results.accuracy())
    epochs = range(1, results.options.epochs + 1)
    every = max(1, results.options.epochs // 10)
    ceiling = _mean_curve(results, ALONE[modality], modality)
    axes.plot(epochs, ceiling, color="0.4", linestyle="--", linewidth=1, label=ALONE[modality])
    for index, method in enumerate([PLAIN, *results.options.balancers]):
        axes.plot(
            epochs,
            _mean_curve(results, method, modality),
            **figures.LINES[index % len(figures.LINES)],
            markevery=(index % len(epochs), every),  # staggered: curves may coincide
            label=method,
        )
    axes.set(
        xlabel="epoch",
        ylabel=f"test accuracy of the {modality} branch (%)",
        xlim=(0, results.options.epochs + 1),
        ylim=(0, 100),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(f"The {modality} branch during training", fontsize=11)
    axes.legend(**LEGEND)
    figures.without_frame(axes)


def _mean_curve(results: Results, method: str, output: str) -> list[float]:
    curves = results.curves(method)[output]
    return [100 * mean(values) for values in zip(*curves, strict=True)]
