"""One line of JSON a measurement."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from modgrad.bench.case import COMPILED, Case
from modgrad.bench.cost import Cost, cost
from modgrad.bench.timing import Flush, interleaved, replayed

Row = dict[str, Any]


def measure(
    case: Case,
    seconds: float,
    device: str,
    about: Row,
    flush: Flush,
    progress: Callable[[float], object] = lambda done: None,
) -> list[Row]:
    """A row a provider; the case's gate is the caller's."""
    providers = case.timed()
    prepare = flush if case.cold else _nothing
    measured = interleaved(providers, seconds, device=device, prepare=prepare, progress=progress)
    first = next(iter(providers))
    bandwidth = 1e9 * about["copy_gb_per_s"]
    floor = None if case.bytes is None else 1e3 * case.bytes / bandwidth
    rows = []
    for name, m in measured.items():
        compiled = name.endswith(COMPILED)
        counts = (
            Cost()
            if case.kind == "scaling"
            else cost(providers[name], device, dispatched=not compiled)
        )
        row = {"kind": case.kind, "op": case.name, "provider": name, **case.config}
        row |= {"median_ms": m.median, "q20_ms": m.q20, "q80_ms": m.q80}
        row |= {"ratio": m.ratio, "ratio_q20": m.ratio_q20, "ratio_q80": m.ratio_q80}
        row |= {"ratio_to": first, "rounds": m.rounds, "cold": case.cold}
        row |= {"bytes": case.bytes, "floor_ms": floor}
        row |= {"percent_of_floor": None if floor is None else 100 * floor / m.median}
        row |= counts._asdict()
        if device == "cuda":
            capturable = counts.host_reads == 0 and case.kind == "op"
            row |= {"host_ms": m.host, "device_ms": m.device}
            row |= {"graph_ms": replayed(providers[name]) if capturable else None}
            if floor is not None and m.device:
                row["percent_of_floor"] = 100 * floor / m.device
        rows.append(rounded({**row, **about}))
    for name, reason in case.missing.items():
        row = {"kind": case.kind, "op": case.name, "provider": name, **case.config}
        rows.append({**row, "missing": reason, **about})
    return rows


def _nothing() -> None: ...


def rounded(row: Row) -> Row:
    """Floats with five digits: more is noise."""
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


def write(rows: Iterable[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cases(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one case each, in their order."""
    out: list[list[Row]] = []
    for row in rows:
        if out and (row["op"], where(row)) == (out[-1][0]["op"], where(out[-1][0])):
            out[-1].append(row)
        else:
            out.append([row])
    return out


INPUTS = (
    *("model", "shapes", "batch", "pixels", "width", "classes", "modalities", "losses"),
    *("dtype", "optimizer"),
)


def where(row: Row) -> str:
    """The input of a measurement in words."""
    words = {"model": "{}", "shapes": "{}", "dtype": "{}", "optimizer": "{}"}
    parts = [words.get(k, f"{k} {{}}").format(row[k]) for k in INPUTS if k in row]
    return ", ".join(part for part in parts if part != "float32")
