"""The command line: ``modgrad demo``, ``bench``, ``diagnose`` and ``doctor``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import modgrad
from modgrad.bench import arguments as bench
from modgrad.demo import arguments as demo
from modgrad.demo.options import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 where it was asked for something it cannot do."""
    parser = argparse.ArgumentParser(prog="modgrad", description=modgrad.__doc__)
    parser.add_argument("--version", action="version", version=modgrad.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    about = "train on AV-Digits with and without balancing: a table and a plot"
    demo.add_arguments(commands.add_parser("demo", help=about, description=about))
    about = "what balancing costs beside plain training and other ways to do it"
    bench.add_arguments(commands.add_parser("bench", help=about, description=about))
    about = "from a run's log to one page: which modality is neglected, and how that shows"
    diagnose = commands.add_parser("diagnose", help=about, description=about)
    diagnose.add_argument("run", type=Path, help="a folder that modgrad.diagnostics.Log wrote")
    diagnose.add_argument("--output", type=Path, help="a folder (default: the run's own)")
    about = "print what a bug report needs: versions, devices, which backend runs"
    commands.add_parser("doctor", help=about, description=about)
    arguments = parser.parse_args(argv)
    if arguments.command == "diagnose":
        return _diagnose(arguments.run, arguments.output)
    if arguments.command == "doctor":
        return _doctor()
    return _demo(arguments) if arguments.command == "demo" else _bench(arguments)


def _lacks_an_extra(command: str) -> bool:
    missing = [name for name in ("rich", "matplotlib") if find_spec(name) is None]
    if missing:
        needs = " and ".join(missing)
        print(f"modgrad {command} needs {needs}: pip install modgrad[{command}]", file=sys.stderr)
    return bool(missing)


def _demo(arguments: argparse.Namespace) -> int:
    if _lacks_an_extra("demo"):
        return 2
    from modgrad.demo.command import run

    return run(Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)}))


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.report:
        from modgrad.bench.report import fill

        try:
            for page in arguments.report:
                print(f"{page}: {'changed' if fill(page) else 'as it was'}")
        except (ValueError, OSError) as error:
            print(f"modgrad bench: {error}", file=sys.stderr)
            return 2
        return 0
    if _lacks_an_extra("bench"):
        return 2
    from modgrad.bench.command import run

    named = {field.name: getattr(arguments, field.name) for field in fields(bench.Options)}
    return run(bench.Options(**named))


def _diagnose(run: Path, output: Path | None) -> int:
    try:
        report = modgrad.diagnostics.report(run, output)
    except (ValueError, OSError, ImportError) as error:
        print(f"modgrad diagnose: {error}", file=sys.stderr)
        return 2
    print(f"{report}\n\n{report.html}\n{report.png}")
    return 0


def _doctor() -> int:
    from modgrad.doctor import report

    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
