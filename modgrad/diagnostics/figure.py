"""The figure of a report: one panel for each thing that the run knows."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from modgrad import figures
from modgrad.diagnostics.conflict import least_cosine, norm_shares
from modgrad.diagnostics.extras import require
from modgrad.diagnostics.findings import lost_without, shares_of
from modgrad.diagnostics.run import Run, finite_rows

Panel = Callable[[Any], None]

# Okabe and Ito's colours, told apart by colour-blind people; dashes, markers and hatches in print.
STYLES = (
    ("#0072B2", "-", "o", "//"),
    ("#E69F00", "--", "s", "\\\\"),
    ("#009E73", "-.", "^", ".."),
    ("#D55E00", ":", "D", "xx"),
    ("#CC79A7", (0, (5, 1, 1, 1)), "v", "--"),
    ("#56B4E9", (0, (1, 1)), "P", "++"),
    ("black", (0, (7, 2)), "X", "oo"),
)
POINTS = 60  # of a curve of steps: means of that many spans


def draw(run: Run) -> bytes:
    """A PNG.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the run holds nothing to draw.
    """
    require("matplotlib", "report")
    kinds = (_contributions, _bars, _weights, _norms, _cosines, _losses)
    panels = [panel for panel in (kind(run) for kind in kinds) if panel is not None]
    if not panels:
        raise ValueError("the run holds nothing to draw, allowed: steps, or results by modality")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = figures.new(5.5 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, panel in zip(axes, panels, strict=False):
        panel(place)
        figures.without_frame(place)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _style(index: int, points: int) -> dict[str, Any]:
    colour, dashes, marker, _ = STYLES[index % len(STYLES)]
    every = (index % points, points // 8) if points > 16 else 1  # staggered: curves may coincide
    return {"color": colour, "linestyle": dashes, "marker": marker, "markevery": every}


def _lines(axes: Any, run: Run, curves: dict[str, tuple[Any, Any]]) -> None:
    """A modality looks the same in every panel."""
    known = run.modalities
    looks = [name for name in curves if name not in known]
    for name, (x, y) in curves.items():
        index = known.index(name) if name in known else looks.index(name)
        axes.plot(x, y, label=name, **_style(index, len(x)))
    axes.legend(frameon=False, fontsize=8, ncols=2 if len(curves) > 4 else 1)


def _spans(steps: Any, values: Any) -> tuple[Any, Any]:
    """Means over up to 60 spans of steps; what is not finite does not count."""
    finite = finite_rows(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        return steps, values
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return (
        np.array([steps[part].mean() for part in parts]),
        np.stack([values[part].mean(0) for part in parts]),
    )


def _by_step(run: Run, name: str) -> tuple[Any, Any]:
    return _spans(*run.series(name))


def _contributions(run: Run) -> Panel | None:
    times, found = run.curve("attribution")
    names = list(found[-1]["accuracy"]) if found else []
    curves = {m: (times, [100 * a["accuracy"][m] for a in found]) for m in names}
    title, label = "Contribution of each modality", "points of accuracy above guessing"
    if not found:
        times, found = run.curve("accuracy")
        heads = list(found[-1]) if found else []
        curves = {h: (times, [_points(a.get(h)) for a in found]) for h in heads}
        title, label = "Accuracy of each output", "accuracy (%)"
    if not found:
        return None

    def panel(axes: Any) -> None:
        _lines(axes, run, curves)
        axes.set(title=title, xlabel="step", ylabel=label)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    return panel


def _points(value: float | None) -> float:
    return np.nan if value is None else 100 * value


def _bars(run: Run) -> Panel | None:
    attribution, used = run.last("attribution"), run.last("utilization")
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    if attribution is not None:
        total = attribution["joint"] - attribution["baseline"]
        scale = 100 / total if total > 0 else 0.0
        error = attribution["error"]
        groups["contribution"] = {
            m: (100 * share, scale * error[m]) for m, share in shares_of(attribution).items()
        }
    if used is not None:
        errors = lost_without({"rate": used["error"]})
        groups["lost without it"] = {
            m: (100 * lost, 100 * errors[m]) for m, lost in lost_without(used).items()
        }
    names = [m for m in run.modalities if any(m in group for group in groups.values())]
    if not groups:
        return None

    def panel(axes: Any) -> None:
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            colour, _, _, hatch = STYLES[run.modalities.index(name) % len(STYLES)]
            bars = [(g, *group[name]) for g, group in enumerate(groups.values()) if name in group]
            places = [g + (i - (len(names) - 1) / 2) * width for g, _, _ in bars]
            values, errors = [v for _, v, _ in bars], [e for _, _, e in bars]
            look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.8}
            axes.bar(places, values, width, yerr=errors, capsize=3, label=name, **look)
            for place, value, error in zip(places, values, errors, strict=True):
                height = max(value, 0) + error + 1
                axes.text(place, height, f"{value:.0f}", ha="center", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set(title="At the end", ylabel="% of the accuracy")
        axes.legend(frameon=False, fontsize=8)

    return panel


def _weights(run: Run) -> Panel | None:
    steps, weights = _by_step(run, "weights")
    if not len(steps) or np.allclose(weights, 1):  # the table says so
        return None
    names, losses = run.header["modalities"], run.header["losses"]
    if weights.ndim == 3:
        flat = weights.reshape(len(weights), -1)
        labels = [f"{m}, loss {k}" for m in names for k in losses]
        moving = [i for i in range(flat.shape[1]) if not np.allclose(flat[:, i], 1)]
        curves = {labels[i]: (steps, flat[:, i]) for i in moving[: len(STYLES)]}
    else:
        curves = {m: (steps, weights[:, i]) for i, m in enumerate(names)}

    def panel(axes: Any) -> None:
        _lines(axes, run, curves)
        axes.set(title="Weights of the gradients", xlabel="step", ylabel="weight")

    return panel


def _norms(run: Run) -> Panel | None:
    steps, norms = run.series("grad_sq_norms")
    if not len(steps):
        return None
    shares = norm_shares(torch.from_numpy(norms)).numpy()
    usable = shares.sum(1) > 0
    x, y = _spans(steps[usable], 100 * shares[usable])
    if not len(x):
        return None
    names = run.header["modalities"]

    def panel(axes: Any) -> None:
        _lines(axes, run, {m: (x, y[:, i]) for i, m in enumerate(names)})
        axes.axhline(100 / len(names), color="0.5", linewidth=1)
        axes.set(title="Share of the gradient norm", xlabel="step", ylabel="%", ylim=(0, 100))

    return panel


def _cosines(run: Run) -> Panel | None:
    steps, gram = run.series("gram")
    if gram.ndim != 4 or gram.shape[2] < 2:
        return None
    finite = finite_rows(gram)
    x, y = _spans(steps[finite], least_cosine(torch.from_numpy(gram[finite])).numpy())
    if not len(x):
        return None
    names = run.header["modalities"]

    def panel(axes: Any) -> None:
        _lines(axes, run, {m: (x, y[:, i]) for i, m in enumerate(names)})
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set(title="Least cosine between two losses' gradients", xlabel="step", ylim=(-1, 1))

    return panel


def _losses(run: Run) -> Panel | None:
    curves = {}
    for name, label in (("train_losses", "training"), ("validation_losses", "validation")):
        times, found = run.curve(name)
        for head in found[-1] if found else []:
            values = [np.nan if x.get(head) is None else x[head] for x in found]
            curves[f"{head}, {label}"] = times, values
    if not curves:
        return None

    def panel(axes: Any) -> None:
        _lines(axes, run, curves)
        axes.set(title="Losses", xlabel="step", ylabel="loss")

    return panel
