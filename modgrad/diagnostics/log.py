"""What a run leaves behind: device tensors in training, a line of JSON for each step afterwards."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modgrad.diagnostics.run import FILE, Record, Run, plain
from modgrad.modulator import Modulator
from modgrad.optimizer import ModulatedOptimizer
from modgrad.records import LastStep

_BY_NAME = {"accuracy", "ceiling", "train_losses", "validation_losses", "learning_speed"}
_FIELDS = tuple(name for name in LastStep.__dataclass_fields__ if name != "modalities")


class Log:
    """Rides along in training, and writes what ``report`` reads.

    ``log.step(optimizer)`` after ``optimizer.step()`` keeps the step's tensors where they
    are. Every `every` steps, and in ``record``, they are read in one transfer. Which tensors there
    are is what the balancer needs, and what the modulator is told to ``record``.

    Args:
        path: the run's folder; made where it is missing. None keeps records in memory.
        every: steps between transfers; until then a few small tensors a step are held.
        resume: go on with the log in the folder. Without, one that is there is an error.

    With several ranks the first writes: statistics are the same on all.

    Raises:
        FileExistsError: the folder holds a log already.
        ValueError: ``every`` is below 1.
    """

    def __init__(
        self, path: str | Path | None = None, *, every: int = 200, resume: bool = False
    ) -> None:
        if every < 1:
            raise ValueError(f"`every` is {every}, allowed: at least 1")
        self._every, self._pending = every, list[LastStep]()
        self._seen: LastStep | None = None
        self._kept, self._steps, self._header = Run(), 0, Record()
        self._told = False
        self._file = None if path is None else Path(path) / FILE
        if self._file is None or not _first_rank():
            return
        if self._file.exists():
            if not resume:
                raise FileExistsError(
                    f"{self._file} is there already, allowed: another folder, or resume=True"
                )
            _drop_cut_line(self._file)
            before = Run.parse(self._file)
            self._header = before.header
            self._steps = max((r["step"] for r in before.steps + before.results), default=0)
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def step(self, modulator: Modulator | ModulatedOptimizer) -> None:
        """Keep what the modulator's last step measured and did; nothing where it did nothing."""
        if isinstance(modulator, ModulatedOptimizer):
            modulator = modulator.modulator
        if not hasattr(modulator, "last"):
            found = type(modulator).__name__
            raise TypeError(f"`modulator` is {found}, allowed: a Modulator or ModulatedOptimizer")
        last = modulator.last
        if last is None or last is self._seen:
            return
        if not self._told:
            self._tell(modulator)
        self._seen = last
        self._pending.append(last)
        if len(self._pending) >= self._every:
            self.flush()

    def record(self, *results: Any, **values: Any) -> None:
        """Write results of diagnostics, and numbers by name, such as losses, for this moment.

        ``log.record(attributions(…), train_losses={"joint": 0.4}, accuracy={"joint": 0.9})``. Names
        that ``report`` knows: see docs/diagnostics.md.

        Raises:
            TypeError: a result is no result of a diagnostic; a number where names are expected.
            ValueError: a name is "kind" or "step".
        """
        for result in results:
            if not is_dataclass(result) or isinstance(result, type):
                found = type(result).__name__
                raise TypeError(f"a result is {found}, allowed: what a diagnostic returns")
            values = {_snake(type(result).__name__): asdict(result), **values}
        for name in _BY_NAME & set(values):
            if not isinstance(values[name], Mapping):
                found = type(values[name]).__name__
                raise TypeError(f"`{name}` is {found}, allowed: a mapping from names to numbers")
        taken = {"kind", "step"} & set(values)
        if taken:
            raise ValueError(f"`values` names {sorted(taken)}, allowed: other names")
        self.flush()
        self._add({"kind": "result", "step": self._steps, **plain(values)})

    def flush(self) -> None:
        """Read what is held, in one transfer, and write it."""
        pending, self._pending = self._pending, []
        if not _first_rank():
            self._steps += len(pending)
            return
        self._add(*self._rows(pending))

    @property
    def run(self) -> Run:
        """All records so far; of the first rank."""
        self.flush()
        return self._kept if self._file is None else Run.read(self._file)

    def _tell(self, modulator: Modulator) -> None:
        """Write whose steps these are."""
        header = {
            "modalities": list(modulator.modalities.names),
            "losses": list(modulator.losses),
            "balancer": str(modulator.balancer),
        }
        before = self._header.get("modalities", header["modalities"])
        if before != header["modalities"]:
            raise ValueError(f"the log is of modalities {before}, allowed: the same")
        self._told = True
        self._add({"kind": "run", **header})

    def _rows(self, pending: list[LastStep]) -> Iterable[Record]:
        """A record of each step; alike steps are stacked, so that all is a handful of kernels."""
        blocks: list[tuple[str, int, Tensor]] = []
        start = 0
        for shapes, group in groupby(pending, _shapes):
            steps = list(group)
            for name in shapes:
                blocks.append((name, start, torch.stack([getattr(s, name) for s in steps])))
            start += len(steps)
        records: list[Record] = [
            {"kind": "step", "step": self._steps + i + 1} for i in range(len(pending))
        ]
        if blocks:
            flat = torch.cat([block.detach().double().flatten() for _, _, block in blocks]).cpu()
            parts = flat.split([block.numel() for _, _, block in blocks])
            for (name, first, block), part in zip(blocks, parts, strict=True):
                for i, row in enumerate(part.reshape(block.shape).tolist(), first):
                    records[i][name] = plain(row)
        self._steps += len(pending)
        return records

    def _add(self, *records: Record) -> None:
        if not records or not _first_rank():
            return
        if self._file is None:
            for record in records:
                self._kept.add(record)
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def _drop_cut_line(file: Path) -> None:
    """What a process that ended while it wrote has left after the last newline."""
    whole = file.read_bytes().rfind(b"\n") + 1
    with file.open("r+b") as stream:
        stream.truncate(whole)


def _shapes(last: LastStep) -> dict[str, torch.Size]:
    values = ((name, getattr(last, name)) for name in _FIELDS)
    return {name: value.shape for name, value in values if value is not None}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
