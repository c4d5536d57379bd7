"""What the reproductions share: arguments, a progress bar, a table, a figure, a verdict."""

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from modgrad import figures
from modgrad.bench.machine import commit


class Report:
    """A title, rows of expected beside obtained values, a figure; files have the script's name."""

    def __init__(self, script: str, description: str, argv: Sequence[str] | None) -> None:
        parser = argparse.ArgumentParser(description=description)
        add = parser.add_argument
        add("--output", type=Path, default=Path("reproductions"), help="folder of the figure")
        add("--quick", action="store_true", help="the smallest version, in seconds")
        options = parser.parse_args(argv)
        torch.set_num_threads(1)
        self.output: Path = options.output
        self.quick: bool = options.quick
        self.console = Console()
        self._script = script
        self._table = Table("what", title=description.splitlines()[0], title_justify="left")
        for name in ("expected", "obtained", ""):
            self._table.add_column(name, justify="right", no_wrap=True)
        self._failed = 0
        command = f"python examples/reproduce/{script}.py" + " --quick" * self.quick
        self._about = {"torch": torch.__version__, "commit": commit(), "command": command}
        self._about |= {"date": date.today().isoformat()}
        self._lines: list[str] = []

    def track(self, items: Sequence, what: str) -> Iterable:
        return track(items, what, console=self.console, transient=True)

    def row(self, what: str, expected: str, obtained: str, good: bool | None = None) -> None:
        """``good`` None is a row without a gate."""
        self._failed += good is False
        verdict = {None: "", True: "ok", False: "NO"}[good]
        self._table.add_row(what, expected, obtained, verdict)
        line = {"what": what, "expected": expected, "obtained": obtained, **self._about}
        self._lines.append(json.dumps(line, ensure_ascii=False) + "\n")

    def axes(self, number: int) -> tuple[Figure, list[Axes]]:
        figure = figures.new(5.5 * number, 4.2)
        axes = figure.subplots(1, number, squeeze=False)[0].tolist()
        for one in axes:
            figures.without_frame(one)
        return figure, axes

    def finish(self, figure: Figure) -> int:
        """Print, save the figure and a line of JSON a row; the exit code."""
        self.output.mkdir(parents=True, exist_ok=True)
        lines = self.output / f"{self._script}.jsonl"
        lines.write_text("".join(self._lines), encoding="utf-8")
        path = self.output / f"{self._script}.png"
        figure.set_dpi(110)
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        # 48 colours: a third of the size
        image.quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)
        self.console.print(self._table)
        self.console.print(str(path), soft_wrap=True, highlight=False)
        return 1 if self._failed else 0
