"""The tables on the screen, one a case."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.table import Table

from modgrad.bench.results import Row, cases, where
from modgrad.bench.scaling import slope


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    for case in cases([row for row in rows if row["kind"] != "scaling"]):
        yield _of_case(case)
    curves = slopes(rows)
    if curves:
        yield _of_curves(curves)


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits, never in powers of ten; nothing for None."""
    if value is None:
        return ""
    text = f"{float(f'{value:.{digits}g}'):f}"
    whole, _, fraction = text.partition(".")
    keep = max(0, digits - len(whole.lstrip("-0")))
    if whole.strip("-0") == "":
        keep += len(fraction) - len(fraction.lstrip("0"))
    return f"{whole}.{fraction[:keep]}" if keep else whole


def _of_case(rows: Sequence[Row]) -> Table:
    first = rows[0]
    out = Table(title=f"{first['op']}: {where(first)}", title_justify="left", box=SIMPLE)
    out.caption_justify = "left"
    cuda = "device_ms" in first
    calls = "device kernels" if cuda else "dispatched ops"
    extra = ("host ms", "device ms", "graph ms") if cuda else ()
    headers = ("median ms", "20 % to 80 %", *extra, f"ratio to {first['provider']}")
    out.add_column("provider")
    for header in (*headers, "% of floor", calls, "host reads", "peak MB"):
        out.add_column(header, justify="right")
    for row in rows:
        if "missing" in row:
            before = f"{out.caption}\n" if out.caption else ""
            out.caption = f"{before}{row['provider']}: {row['missing']}"
            continue
        peak = row["peak_bytes"]
        count = row["device_kernels"] if cuda else row["dispatched_ops"]
        reads = row["host_reads"]
        on_gpu = [number(row.get(f"{name}_ms")) for name in ("host", "device", "graph")]
        out.add_row(
            *(row["provider"], number(row["median_ms"])),
            f"{number(row['q20_ms'])} to {number(row['q80_ms'])}",
            *(on_gpu if cuda else ()),
            f"{row['ratio']:.3f} ({row['ratio_q20']:.2f} to {row['ratio_q80']:.2f})",
            number(row["percent_of_floor"], 2),
            *("" if n is None else f"{n:,}" for n in (count, reads)),
            "" if peak is None else f"{peak / 1e6:.1f}",
        )
    return out


def slopes(rows: Sequence[Row]) -> list[tuple[str, str, str, list[Row], float]]:
    """Axis, op, provider, the points and the slope of each curve."""
    curves: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        measured = "missing" not in row and not row["provider"].endswith("again")
        if row["kind"] == "scaling" and measured:
            curves.setdefault((row["axis"], row["op"], row["provider"]), []).append(row)
    return [
        (*key, points, slope([p["value"] for p in points], [p["median_ms"] for p in points]))
        for key, points in curves.items()
        if len(points) > 3
    ]


def _of_curves(curves: Sequence[tuple[str, str, str, list[Row], float]]) -> Table:
    out = Table(title="scaling", title_justify="left", box=SIMPLE)
    for header in ("against", "op", "provider"):
        out.add_column(header)
    for header in ("from", "ms", "to", "ms", "slope, upper half"):
        out.add_column(header, justify="right")
    for axis, op, provider, points, steepness in curves:
        ends = [cell for p in (points[0], points[-1]) for cell in (p["value"], p["median_ms"])]
        cells = (f"{ends[0]:,}", number(ends[1]), f"{ends[2]:,}", number(ends[3]))
        out.add_row(axis, op, provider, *cells, f"{steepness:.2f}")
    return out
