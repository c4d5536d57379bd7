"""Microbenchmarks and step benchmarks: correctness first, then time. ``make bench`` runs this."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import cases
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from timing import interleaved

import modgrad
from modgrad.doctor import device_name

HERE = Path(__file__).parent


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a large copy, reads and writes counted."""
    source = torch.randn(2**25, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, 20, device=device)
    return 2 * source.numel() * source.element_size() / (times["copy"].median / 1e3)


def all_cases(device: str, quick: bool) -> Iterator[tuple[cases.Case, int]]:
    """Each case and how many rounds it deserves."""
    rounds = 20 if quick else 100
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        for shapes in ("1000 small", "2x resnet18"):
            yield cases.group_sq_norms(shapes, device, dtype), rounds
            yield cases.modulate_(shapes, device, dtype), rounds
        for num_classes in (10, 1000):
            yield cases.modality_cross_entropy(64, num_classes, device, dtype), 5 * rounds
            yield cases.modulated_adamw_(shapes, device, dtype), rounds
    yield cases.training_step(device, 16, 112 if device == "cpu" else 224), 3 if quick else 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    parser.add_argument("--output", type=Path, default=None, help="file for one JSON line a number")
    options = parser.parse_args()
    device, console = options.device, Console()
    if device == "cuda" and not torch.cuda.is_available():
        console.print("no CUDA device; allowed here: --device cpu")
        return 2
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device)
    about = {
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "torch": torch.__version__,
        "modgrad": modgrad.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
        "command": " ".join(["benchmarks/run.py", *sys.argv[1:]]),
    }
    console.print(about)
    lines = []
    with Progress(console=console, transient=True) as progress:
        for case, rounds in all_cases(device, options.quick):
            case.check()  # raises: no time is printed on a red gate
            task = progress.add_task(case.name, total=rounds + 3)
            measured = interleaved(
                case.providers,
                rounds,
                device=device,
                progress=lambda t=task: progress.advance(t),
            )
            progress.remove_task(task)
            first = next(iter(case.providers))
            table = Table(
                "provider", "median ms", "20 % to 80 %", f"ratio to {first}", "% of floor"
            )
            table.title = f"{case.name}  {case.config}"
            for name, m in measured.items():
                floor = None if case.bytes is None else 1e3 * case.bytes / bandwidth
                share = "" if floor is None else f"{100 * floor / m.median:.0f}"
                spread = f"{m.q20:.3f} to {m.q80:.3f}"
                table.add_row(name, f"{m.median:.3f}", spread, f"{m.ratio:.3f}", share)
                row = {"op": case.name, "provider": name, **case.config, "median_ms": m.median}
                row |= {"q20_ms": m.q20, "q80_ms": m.q80, "ratio": m.ratio, "ratio_to": first}
                lines.append({**row, "bytes": case.bytes, "floor_ms": floor, **about})
            console.print(table)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("".join(json.dumps(line) + "\n" for line in lines))
        console.print(f"{len(lines)} measurements in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
