"""From the options to the table, the figure and the files."""

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from modgrad.backends import BackendUnavailableError
from modgrad.demo import plot, timing, training
from modgrad.demo.methods import UNBALANCED
from modgrad.demo.options import AUTO, Options
from modgrad.demo.report import show
from modgrad.demo.results import Results, Run, Timing
from modgrad.doctor import backend_name, device_name, versions


def run(options: Options) -> int:
    """Train, compare, print and save; the exit code."""
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    try:
        device = _device(options.device)
        backend = backend_name(device, None if options.backend == AUTO else options.backend)
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, BackendUnavailableError, OSError) as error:
        print(f"modgrad demo: {error}", file=sys.stderr)
        return 2
    console = Console()
    runs, timings = _measure(training.prepare(options, device, backend), console)
    seconds = time.perf_counter() - started
    name = device_name(device)
    results = Results(options, backend, name, versions(), runs, timings, seconds)
    show(results, console)
    for path in _save(results, options.output):
        console.print(str(path), soft_wrap=True, highlight=False)
    return 0


def _device(name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("torch can use no CUDA device here, allowed: --device cpu")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def _measure(
    setting: training.Setting, console: Console
) -> tuple[tuple[Run, ...], dict[str, Timing]]:
    """All runs, seed by seed, then the step times."""
    options = setting.options
    methods = [*UNBALANCED, *options.balancers]
    columns = BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    runs = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=options.seeds * len(methods) * options.epochs)
        for seed in range(options.seeds):
            for method in methods:

                def report(epoch: int, loss: float, what: str = f"{method}, seed {seed}") -> None:
                    text = f"{what}, epoch {epoch}/{options.epochs}, loss {loss:.3f}"
                    progress.update(task, advance=1, description=text)

                runs.append(training.run(method, seed, setting, report))
        task = progress.add_task("step times", total=timing.WARM_UP + timing.ROUNDS)
        timings = timing.measure(setting, lambda: progress.advance(task))
    return tuple(runs), timings


def _save(results: Results, folder: Path) -> list[Path]:
    table, figure, numbers = (folder / f"demo.{suffix}" for suffix in ("txt", "png", "json"))
    with table.open("w", encoding="utf-8") as file:
        show(results, Console(file=file, width=100))
    plot.save(results, figure)
    results.save(numbers)
    return [table, figure, numbers]
