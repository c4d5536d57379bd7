"""How the project's figures look. matplotlib is imported only where one is drawn."""

from typing import Any

# Okabe and Ito's colours, told apart by colour-blind people; dashes, markers, hatches serve print.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
)
FILLS = (("#56B4E9", ""), ("#E69F00", "///"), ("#009E73", "..."), ("white", "xx"))
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}


def new(width: float, height: float) -> Any:
    """An empty figure of so many inches, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def without_frame(axes: Any) -> None:
    """Axes with a left and a lower edge."""
    axes.spines[["top", "right"]].set_visible(False)
