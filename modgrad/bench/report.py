"""Numbers in Markdown pages: what stands between two markers is made from lines of JSON.

    <!-- bench ops results/cpu-2-cores group_sq_norms -->
    ...
    <!-- end of bench -->

The folder is relative to the page; its newest file (by name) counts. With the name of an op only
that op's lines do.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from modgrad.bench.case import AGAIN
from modgrad.bench.results import Row, cases, read, where
from modgrad.bench.table import number, slopes
from modgrad.bench.training_step import PARTS

_BLOCK = re.compile(
    r"(<!-- bench (\S+) (\S+)(?: ([^\n]+))? -->\n)(.*?)(<!-- end of bench -->)", re.S
)


def filled(page: Path) -> str:
    """The page's text with every block made anew.

    Raises:
        ValueError: a marker names no block, a folder without lines of JSON, or an op without lines.
    """

    def block(match: re.Match[str]) -> str:
        name, folder = match[2], page.parent / match[3]
        if name not in BLOCKS:
            allowed = ", ".join(BLOCKS)
            raise ValueError(f"{page}: no block {name!r}, allowed: {allowed}")
        files = sorted(folder.glob("[0-9]*.jsonl"))
        if not files:
            raise ValueError(f"{page}: no .jsonl file in {folder}")
        rows = [row for row in read(files[-1]) if match[4] in (None, row["op"])]
        if not rows:
            raise ValueError(f"{page}: no line of the op {match[4]!r} in {files[-1]}")
        return f"{match[1]}{BLOCKS[name](rows)}\n{match[6]}"

    return _BLOCK.sub(block, page.read_text(encoding="utf-8"))


def names(page: Path) -> list[str]:
    """The blocks of a page."""
    return [match[2] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def fill(page: Path) -> bool:
    """Write the page; whether it changed."""
    text = filled(page)
    changed = text != page.read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    return changed


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text left, of numbers right: the first column with a digit first starts them."""
    words = sum(not name.startswith(">") for name in header)
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    lines = [[name.lstrip(">") for name in header], rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(rows: Sequence[Row], *kinds: str) -> list[list[Row]]:
    return cases([row for row in rows if row["kind"] in kinds and "missing" not in row])


def _is_cuda(rows: Sequence[Row]) -> bool:
    return "device_ms" in rows[0]


def _spread(row: Row) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_q20']:.2f} to {row['ratio_q80']:.2f})"


def _calls(row: Row) -> str:
    count = row.get("device_kernels")
    count = row["dispatched_ops"] if count is None else count
    return "" if count is None else f"{count:,}"


def _reads(row: Row) -> str:
    return "" if row["host_reads"] is None else f"{row['host_reads']:,}"


def _machine(rows: Sequence[Row]) -> str:
    row = rows[0]
    return (
        f"{row['device']}, {row['threads']} threads; a large copy moves {row['copy_gb_per_s']} GB/s"
        f" (reads and writes). torch {row['torch']}, modgrad {row['modgrad']} at `{row['commit']}`,"
        f" {row['date']}, `{row['command']}`: {len(rows)} lines."
    )


def _noise(rows: Sequence[Row]) -> str:
    """The distance from 1 of the same function timed twice."""
    lines = []
    for kind in ("op", "optimizer step", "training step", "balancer", "scaling"):
        again = [r for case in _measured(rows, kind) for r in case if r["provider"].endswith(AGAIN)]
        if again:
            off = sorted(100 * abs(r["ratio"] - 1) for r in again)
            middle, worst = off[len(off) // 2], off[-1]
            cells = (kind, f"{len(off)}", f"{middle:.1f} %", f"{worst:.1f} %")
            lines.append(cells)
    return _markdown(("kind", ">cases", ">median off by", ">at most"), lines)


def _ops(rows: Sequence[Row]) -> str:
    return _table(rows, "op")


def _optimizer_step(rows: Sequence[Row]) -> str:
    return _table(rows, "optimizer step")


def _table(rows: Sequence[Row], kind: str) -> str:
    cuda = _is_cuda(rows)
    calls, more = ("kernels", ("host", "device", "graph")) if cuda else ("ops", ())
    lines = []
    for case in _measured(rows, kind):
        for row in case:
            if row["provider"].endswith(AGAIN):
                continue
            apart = (number(row[f"{name}_ms"]) for name in more)
            cells = (row["op"], where(row), row["provider"], number(row["median_ms"]), *apart)
            share = number(row["percent_of_floor"], 2)
            lines.append((*cells, _spread(row), share, _calls(row), _reads(row)))
    on_gpu = [f">{name} ms" for name in more]
    header = ("op", "input", "provider", ">ms", *on_gpu, ">ratio to the first", ">% of floor")
    return _markdown((*header, f">{calls}", ">host reads"), lines)


def _steps(rows: Sequence[Row], kind: str) -> str:
    calls = "kernels" if _is_cuda(rows) else "ops"
    lines = []
    for case in _measured(rows, kind):
        first = case[0]
        for row in case:
            if row["provider"] in PARTS:
                continue
            added = "" if row is first else f"{100 * (row['ratio'] - 1):+.1f} %"
            low, high = (f"{100 * (row[f'ratio_{q}'] - 1):+.1f}" for q in ("q20", "q80"))
            spread = "" if row is first else f"{low} to {high}"
            cells = (where(row), row["provider"], number(row["median_ms"]), added, spread)
            lines.append((*cells, _calls(row), _reads(row)))
    header = ("step", "provider", ">ms", ">balancing adds", ">20 % to 80 %")
    return _markdown((*header, f">{calls}", ">host reads"), lines)


def _training_step(rows: Sequence[Row]) -> str:
    return _steps(rows, "training step")


def _balancers(rows: Sequence[Row]) -> str:
    return _steps(rows, "balancer")


def _parts(rows: Sequence[Row]) -> str:
    """Where the time of a plain step goes."""
    lines = []
    for case in _measured(rows, "training step"):
        forward, both = (next(r["ratio"] for r in case if r["provider"] == part) for part in PARTS)
        shares = forward, both - forward, 1 - both
        lines.append((where(case[0]), *(f"{100 * share:.0f} %" for share in shares)))
    return _markdown(("step", ">forward", ">backward", ">update and the rest"), lines)


def _scaling(rows: Sequence[Row]) -> str:
    lines = []
    for axis, op, provider, points, steepness in slopes(rows):
        ends = [(f"{p['value']:,}", number(p["median_ms"])) for p in (points[0], points[-1])]
        lines.append((axis, op, provider, *ends[0], *ends[1], f"{steepness:.2f}"))
    header = ("against", "op", "provider", ">from", ">ms", ">to", ">ms", ">slope")
    return _markdown(header, lines)


# What balancing adds by method: without a host read by stock PyTorch, and at modgrad's two places.
METHODS = {
    "OGM": ("papers' loop", "foreach", "modgrad, parameters", "modgrad, boundary"),
    "AGM, late fusion": ("papers' loop, AGM", None, None, "modgrad, AGM"),
    "conditional learning speed": (
        *("papers' loop, learning speed", None, "modgrad, learning speed", None),
    ),
}


def _summary(rows: Sequence[Row]) -> str:
    """What balancing adds to a training step: a row a network and method."""
    lines = []
    for case in _measured(rows, "training step"):
        of = {row["provider"]: row for row in case}
        for method, providers in METHODS.items():
            if providers[0] not in of:
                continue
            shown = ("plain again", *providers)
            added = [f"{100 * (of[name]['ratio'] - 1):+.1f} %" if name else "" for name in shown]
            ours = providers[2] or providers[3]
            reads = f"{_reads(of[providers[0]])} / {_reads(of[ours or ''])}"
            model, batch = str(case[0]["model"]), str(case[0]["batch"])
            lines.append((model, method, batch, number(case[0]["median_ms"]), *added, reads))
    header = ("network", "method", ">batch", ">plain, ms", ">plain again", ">papers' loop")
    own = (">`_foreach`", ">modgrad", ">modgrad, boundary", ">host reads, loop / modgrad")
    note = (
        f"\n\nOn {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['date']}; medians of"
        " pairwise ratios to a plain step."
    )
    return _markdown((*header, *own), lines) + note


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "machine": _machine,
    "noise": _noise,
    "ops": _ops,
    "optimizer-step": _optimizer_step,
    "training-step": _training_step,
    "parts": _parts,
    "balancers": _balancers,
    "scaling": _scaling,
    "summary": _summary,
}
