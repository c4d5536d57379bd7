"""The figure: ops beside their baseline, what balancing adds to a step, and the curves."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modgrad import figures
from modgrad.bench.case import AGAIN
from modgrad.bench.results import Row, cases, where
from modgrad.bench.table import slopes
from modgrad.bench.training_step import PARTS

MARKERS = {"papers' loop": "x", "modgrad, native": "o", "modgrad, triton": "D"}
NOISE = "|"
DRAWN = "op", "optimizer step"


def save(rows: Sequence[Row], path: Path) -> None:
    """Only panels that have something to show."""
    measured = [row for row in rows if "missing" not in row]
    panels: list[tuple[Callable[[Any], None], int]] = []
    ops = cases([row for row in measured if row["kind"] in DRAWN])
    if ops:
        panels.append((lambda axes: _ops(axes, ops), len(ops)))
    steps = cases([row for row in measured if row["kind"] in ("training step", "balancer")])
    if steps:
        panels.append((lambda axes: _steps(axes, steps), sum(map(len, steps))))
    curves = slopes(measured)
    if curves:
        panels += [(partial(_curves, curves, axis), 14) for axis in _axes(curves)]
    if not panels:
        return
    wide = [panel for panel in panels if panel[1] != 14] or []
    heights = [0.8 + 0.24 * size for _, size in wide]
    small = [panel for panel in panels if panel not in wide]
    below = (len(small) + 1) // 2
    figure = figures.new(9, sum(heights) + 3.0 * below)
    grid = figure.add_gridspec(len(wide) + below, 2, height_ratios=[*heights, *([3.0] * below)])
    for i, (draw, _) in enumerate(wide):
        draw(figure.add_subplot(grid[i, :]))
    for i, (draw, _) in enumerate(small):
        draw(figure.add_subplot(grid[len(wide) + i // 2, i % 2]))
    figure.savefig(path, dpi=100)


def _axes(curves: Sequence[tuple[str, str, str, list[Row], float]]) -> list[str]:
    return list(dict.fromkeys(curve[0] for curve in curves))


def _style(provider: str) -> dict[str, Any]:
    if provider.endswith(AGAIN):
        return {"marker": NOISE, "color": "0.3", "label": "the baseline again: noise"}
    if provider in MARKERS:
        hollow = {"markerfacecolor": "white"} if provider == "modgrad, triton" else {}
        return {"marker": MARKERS[provider], "color": "black", "label": provider, **hollow}
    return {"marker": ".", "color": "0.6", "label": "others"}


def _ops(axes: Any, ops: Sequence[list[Row]]) -> None:
    """A row a case: the time of each provider, as a multiple of the first."""
    seen: set[str] = set()
    for place, rows in enumerate(reversed(ops)):
        for row in rows[1:]:
            style = _style(row["provider"])
            label = style.pop("label")
            once = label if label not in seen else None
            seen.add(label)
            axes.plot(row["ratio"], place, linestyle="", label=once, **style)
    names = [f"{rows[0]['op']}, {where(rows[0])}\nto {rows[0]['provider']}" for rows in ops]
    axes.set_yticks(range(len(ops)), list(reversed(names)), fontsize=6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time, as a multiple of the baseline (left is faster)")
    axes.grid(axis="y", linewidth=0.3)
    figures.without_frame(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=4, **figures.LEGEND)


def _steps(axes: Any, steps: Sequence[list[Row]]) -> None:
    """Bars: what a method adds to a plain step, with the 20 % and 80 % quantiles."""
    names, place = [], 0
    for rows in steps:
        for row in rows[1:]:
            if row["provider"] in PARTS:
                continue
            added = 100 * (row["ratio"] - 1)
            low, high = (100 * (row[f"ratio_{q}"] - 1) for q in ("q20", "q80"))
            hatch = "///" if row["provider"].endswith(AGAIN) else ""
            style = {"color": "0.85", "edgecolor": "black", "hatch": hatch}
            axes.barh(place, added, **style)
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            names.append(f"{row['provider']} ({', '.join(where(row).split(', ')[:2])})")
            place += 1
    axes.set_yticks(range(place), names, fontsize=6)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("% more than the plain step of the same losses (hatched: plain again, noise)")
    figures.without_frame(axes)


def _curves(
    curves: Sequence[tuple[str, str, str, list[Row], float]], chosen: str, axes: Any
) -> None:
    own = [curve for curve in curves if curve[0] == chosen]
    for i, (_, op, provider, points, steepness) in enumerate(own):
        values = [p["value"] for p in points]
        label = f"{op}, {provider}: slope {steepness:.2f}"
        axes.plot(
            values,
            [p["median_ms"] for p in points],
            label=label,
            markersize=4,
            **figures.LINES[i % 4],
        )
    axes.set(xscale="log", yscale="log", xlabel=chosen, ylabel="ms")
    figures.without_frame(axes)
    axes.legend(frameon=False, fontsize=6)
