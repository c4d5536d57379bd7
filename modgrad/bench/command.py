"""From the options to the gate, the times, the tables, the figure and the lines of JSON."""

import sys
import time
import traceback
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
    """Check and measure case by case; 1 where one of them fails, 2 where nothing can run."""
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
    lines = options.output / "bench.jsonl"
    rows, failed = _measure(chosen, options, console, lines)
    for table in tables(rows):
        console.print(table)
    for path in (*_save(rows, options.output), lines) if rows else ():
        console.print(str(path), soft_wrap=True, highlight=False)
    seconds = time.perf_counter() - started
    console.print(f"{len(rows)} measurements in {seconds / 60:.1f} minutes", highlight=False)
    if failed:
        names = "\n  ".join(failed)
        print(f"modgrad bench: no times of what failed:\n  {names}", file=sys.stderr)
    return 1 if failed else 0


def _measure(
    chosen: Sequence[Entry], options: Options, console: Console, lines: Path
) -> tuple[list[Row], list[str]]:
    """Rows, written after every case: what is measured outlives what goes wrong; and failures."""
    torch.manual_seed(0)
    about = machine.about(options.device, options.command())
    flush = machine.flush(options.device)
    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    rows: list[Row] = []
    failed: list[str] = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(entry.estimate for entry in chosen))
        done = 0.0
        for number, entry in enumerate(chosen, 1):
            name = f"{number}/{len(chosen)} {entry.label}"
            progress.update(task, completed=done, description=f"{name}: checking")

            def report(
                share: float, done: float = done, name: str = name, entry: Entry = entry
            ) -> None:
                now = done + share * entry.estimate
                progress.update(task, completed=now, description=f"{name}: timing")

            try:
                case = entry.build()
                case.check()
                rows += results.measure(case, entry.seconds, options.device, about, flush, report)
                results.write(rows, lines)
            except Exception:  # of any provider: the other cases are not at fault
                failed.append(entry.label)
                print(f"{entry.label}:\n{traceback.format_exc()}", file=sys.stderr)
            done += entry.estimate
    return rows, failed


def _save(rows: Sequence[Row], folder: Path) -> list[Path]:
    table, figure = (folder / f"bench.{suffix}" for suffix in ("txt", "png"))
    with table.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=WIDTH)
        for each in tables(rows):
            console.print(each)
    plot.save(rows, figure)
    return [table, figure]
