"""What is optional: said in one line where it is missing."""

import sys
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import TypeVar

_Item = TypeVar("_Item")
_DISTRIBUTION = {"sklearn": "scikit-learn"}


def require(module: str, what: str) -> None:
    """Raise ImportError that names the package and the extra, where a module is missing."""
    if find_spec(module) is None:
        name = _DISTRIBUTION.get(module, module)
        raise ImportError(f"{what} needs {name}: pip install modgrad[diagnostics]")


def track(items: Iterable[_Item], text: str, shown: bool) -> Iterator[_Item]:
    """The items; behind a progress bar where wanted, where rich is installed, on a terminal."""
    if not shown or find_spec("rich") is None or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, _length(items), description=text)


def _length(items: object) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set
        return None
