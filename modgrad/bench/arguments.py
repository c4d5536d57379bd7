"""The options of ``modgrad bench`` on the command line."""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """See ``modgrad bench --help``."""

    device: str = "cpu"
    quick: bool = False
    scaling: bool = False
    only: str = ""
    output: Path = Path("bench_results")
    report: tuple[Path, ...] = ()

    def command(self) -> str:
        """What to type for the same measurements, without the machine's folders."""
        words = ["modgrad", "bench", "--device", self.device]
        words += [f"--{name}" for name in ("quick", "scaling") if getattr(self, name)]
        return shlex.join([*words, "--only", self.only] if self.only else words)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Options()
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default=default.device, help="default: %(default)s")
    add("--quick", action="store_true", help="smaller and shorter: a look, not a result")
    add("--scaling", action="store_true", help="also cost against tensors, parameters, batch, …")
    add("--only", default="", metavar="TEXT", help="cases whose label contains it")
    add("--output", type=Path, default=default.output, help="a folder (default: %(default)s)")
    add(
        "--report",
        type=Path,
        nargs="+",
        default=(),
        metavar="PAGE",
        help="measure nothing: fill in what stands between the bench markers of Markdown pages,"
        " from the JSON lines that they name",
    )
