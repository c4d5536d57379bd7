"""From a run's records to one page."""

from dataclasses import dataclass
from pathlib import Path

from modgrad.diagnostics.figure import draw
from modgrad.diagnostics.findings import Summary, summarise
from modgrad.diagnostics.page import cell, page
from modgrad.diagnostics.run import Run
from modgrad.table import render


@dataclass(frozen=True)
class Report:
    """What ``report`` found, and where it is written."""

    summary: Summary
    html: Path
    png: Path

    def __str__(self) -> str:
        """The words and the table."""
        parts = ["\n".join(self.summary.sentences)]
        if self.summary.advice:
            parts.append("\n".join(["What could be tried:", *self._advice()]))
        table = self.summary.table
        if table:
            names = list(next(iter(table.values())))
            rows = [[q, *(cell(q, row[m]) for m in names)] for q, row in table.items()]
            parts.append(render(["", *names], rows))
        return "\n\n".join(parts)

    def _advice(self) -> list[str]:
        return [f"- {text}" for text in self.summary.advice]


def report(run: Run | str | Path, output: str | Path | None = None) -> Report:
    """Write ``report.html`` and ``report.png``: how each modality fares, in words and in pictures.

    Args:
        run: a run's folder, its log file, or ``Log.run``.
        output: a folder; by default the run's own.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: it holds nothing to report; no folder to write to.
        ImportError: matplotlib is missing.
    """
    if isinstance(run, Run):
        if output is None:
            raise ValueError("`output` is None, allowed for records in memory: a folder")
        records, folder, title = run, Path(output), "Modalities of a run"
    else:
        path = Path(run)
        records = Run.read(path)
        home = path if path.is_dir() else path.parent
        folder = home if output is None else Path(output)
        title = f"Modalities of {home.resolve().name}"
    summary, figure = summarise(records), draw(records)
    folder.mkdir(parents=True, exist_ok=True)
    html, png = folder / "report.html", folder / "report.png"
    png.write_bytes(figure)
    balancer = records.header.get("balancer", "")
    html.write_text(page(title, balancer, summary, figure), encoding="utf-8")
    return Report(summary, html, png)
