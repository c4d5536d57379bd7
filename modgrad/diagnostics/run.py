"""What is known of a run: a header, a record per step, and whatever else was recorded."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "log.jsonl"
Record = dict[str, Any]


@dataclass
class Run:
    """The records of a ``Log``."""

    header: Record = field(default_factory=dict)
    """modalities, losses, balancer, as of the first step."""
    steps: list[Record] = field(default_factory=list)
    """What ``LastStep`` held, as lists in the order of the header's names; None for NaN."""
    results: list[Record] = field(default_factory=list)
    """What ``Log.record`` was given, each with its step."""

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        """From a run's folder, or its file. A last line that was cut off is left out.

        Raises:
            FileNotFoundError: there is no log.
            ValueError: the log holds no records, or a line that is none.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise FileNotFoundError(f"no log at {file}, allowed: a run's folder, with {FILE}")
        run = cls.parse(file)
        if not (run.steps or run.results):
            raise ValueError(f"{file} holds no records, allowed: at least one")
        return run

    @classmethod
    def parse(cls, file: Path) -> "Run":
        """As ``read``, of a file that may hold nothing yet."""
        run = cls()
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                run.add(json.loads(line))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines) and isinstance(error, json.JSONDecodeError):
                    break  # the process ended while it wrote
                raise ValueError(f"{file}, line {number}, is no record of a run") from error
        return run

    def add(self, record: Record) -> None:
        """Take up a record, by its kind."""
        kind = record.pop("kind")
        if kind == "run":
            if self.header and record["modalities"] != self.header["modalities"]:
                raise KeyError("another run's modalities")
            self.header = record
        else:
            {"step": self.steps, "result": self.results}[kind].append(record)

    @property
    def modalities(self) -> list[str]:
        """Of the steps, and of the last attribution and utilization: groups and modalities."""
        names = list(self.header.get("modalities", []))
        for key in ("attribution", "utilization"):
            names += (self.last(key) or {}).get("accuracy", {})
        return list(dict.fromkeys(names))

    def last(self, name: str) -> Any:
        """The latest result of this name, or None."""
        return next((r[name] for r in reversed(self.results) if name in r), None)

    def curve(self, name: str) -> tuple[list[float], list[Any]]:
        """Every result of this name, and when: in steps, or counted where no steps were logged."""
        found = [(r["step"], r[name]) for r in self.results if name in r]
        times = [float(step) for step, _ in found]
        if any(a >= b for a, b in pairwise(times)):
            times = [float(i) for i in range(len(found))]
        return times, [value for _, value in found]

    def series(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """A statistic of the steps: steps [T] and values [T, …], float64, NaN where not finite.

        Of the steps that have it in the shape of the last one.
        """
        found = [(r["step"], np.array(r[name], dtype=np.float64)) for r in self.steps if name in r]
        kept = [(step, x) for step, x in found if x.shape == found[-1][1].shape]
        if not kept:
            return np.zeros(0), np.zeros((0, 0))
        return np.array([step for step, _ in kept], np.float64), np.stack([x for _, x in kept])


def finite_rows(values: NDArray[Any]) -> NDArray[Any]:
    """bool [T], of values [T, …]: which are finite throughout."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def plain(value: Any) -> Any:
    """As JSON knows it: no NaN, no infinity, no tensors."""
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    number = float(value)
    return number if math.isfinite(number) else None
