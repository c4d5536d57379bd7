"""From the options to the gate, the times, the tables, the figure and the lines of JSON."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from modgrad.bench import machine, plot, results
from modgrad.bench.arguments import Options
from modgrad.bench.results import Row
from modgrad.bench.suite import Entry, entries
from modgrad.bench.table import tables

WIDTH = 160  # columns of a table that is not printed on a screen


def run(options: Options) -> int:
    """Check and measure case by case; 1 where a check fails, 2 where nothing can run."""
    # a file has no width
    device, console = options.device, Console(width=None if sys.stdout.isatty() else WIDTH)
    if device == "cuda" and not torch.cuda.is_available():
        print("modgrad bench: torch can use no CUDA device, allowed: --device cpu", file=sys.stderr)
        return 2
    chosen = entries(device, quick=options.quick, curves=options.scaling)
    labels = list(dict.fromkeys(entry.label for entry in chosen))
    chosen = [entry for entry in chosen if options.only in entry.label]
    if not chosen:
        known = "\n  ".join(labels)  # labels have commas
        print(
            f"modgrad bench: no case contains {options.only!r}, there are:\n  {known}",
            file=sys.stderr,
        )
        return 2
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"modgrad bench: {error}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    minutes = sum(entry.estimate for entry in chosen) / 60
    console.print(f"{len(chosen)} cases, about {minutes:.1f} minutes", highlight=False)
    try:
        rows = _measure(chosen, options, console)
    except AssertionError as error:
        print(f"modgrad bench: providers disagree, nothing is reported\n{error}", file=sys.stderr)
        return 1
    lines = options.output / "bench.jsonl"
    results.write(rows, lines)  # first: minutes of measuring outlive what goes wrong after them
    for table in tables(rows):
        console.print(table)
    for path in (*_save(rows, options.output), lines):
        console.print(str(path), soft_wrap=True, highlight=False)
    seconds = time.perf_counter() - started
    console.print(f"{len(rows)} measurements in {seconds / 60:.1f} minutes", highlight=False)
    return 0


def _measure(chosen: Sequence[Entry], options: Options, console: Console) -> list[Row]:
    torch.manual_seed(0)
    about = machine.about(options.device, options.command())
    flush = machine.flush(options.device)
    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    rows: list[Row] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(entry.estimate for entry in chosen))
        done = 0.0
        for number, entry in enumerate(chosen, 1):
            name = f"{number}/{len(chosen)} {entry.label}"
            progress.update(task, completed=done, description=f"{name}: checking")
            case = entry.build()
            try:
                case.check()
            except AssertionError as error:
                raise AssertionError(f"{entry.label}: {error}") from error

            def report(
                share: float, done: float = done, name: str = name, entry: Entry = entry
            ) -> None:
                now = done + share * entry.estimate
                progress.update(task, completed=now, description=f"{name}: timing")

            rows += results.measure(case, entry.seconds, options.device, about, flush, report)
            done += entry.estimate
    return rows


def _save(rows: Sequence[Row], folder: Path) -> list[Path]:
    table, figure = (folder / f"bench.{suffix}" for suffix in ("txt", "png"))
    with table.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=WIDTH)
        for each in tables(rows):
            console.print(each)
    plot.save(rows, figure)
    return [table, figure]
