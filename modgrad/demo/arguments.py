"""The options of ``modgrad demo`` on the command line."""

import argparse
import math
from pathlib import Path

from modgrad.backends import BACKENDS
from modgrad.demo.methods import BALANCED
from modgrad.demo.options import AUTO, DEVICES, Options


def _balancers(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return tuple(BALANCED)
    unknown = [name for name in names if name not in BALANCED]
    if unknown:
        allowed = f"{', '.join(BALANCED)}, separated by commas, or all"
        raise argparse.ArgumentTypeError(f"no balancer {unknown[0]!r}, allowed: {allowed}")
    return tuple(dict.fromkeys(names))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a whole number >= 1")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _rate(text: str) -> float:
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a number > 0")
    return float(text)


def _deviation(text: str) -> float:
    if not 0 <= _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a number >= 0")
    return float(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Options()
    known = "; ".join(f"{name} = {method.balancer}" for name, method in BALANCED.items())
    add = parser.add_argument
    add(
        "--balancers",
        type=_balancers,
        default=default.balancers,
        metavar="NAMES",
        help=f"separated by commas, or all (default: {','.join(default.balancers)}); {known}",
    )
    add("--epochs", type=_count, default=default.epochs, help="default: %(default)s")
    add("--seeds", type=_count, default=default.seeds, help="how many (default: %(default)s)")
    add("--batch-size", type=_count, default=default.batch_size, help="default: %(default)s")
    add("--lr", type=_rate, default=default.lr, help="learning rate (default: %(default)s)")
    add(
        "--image-noise",
        type=_deviation,
        default=default.image_noise,
        help="standard deviation of the noise on the images, whose ink is 1 (default: %(default)s);"
        " with 0 they alone give the digit, and nothing is lost with the speech",
    )
    add("--backend", choices=(AUTO, *BACKENDS), default=default.backend)
    add("--device", choices=DEVICES, default=default.device)
    add(
        "--threads",
        type=_count,
        default=default.threads,
        help="of torch (default: %(default)s: so small a network gains little from more, and on a"
        " busy machine they cost it 20 times the time)",
    )
    add("--output", type=Path, default=default.output, help="a folder (default: %(default)s)")
