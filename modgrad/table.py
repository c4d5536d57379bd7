"""Plain-text tables, and lists of names made short without losing any."""

from collections.abc import Collection, Sequence


def compress(names: Collection[str], universe: Collection[str]) -> list[str]:
    """The shortest list of names and ``prefix.*`` that covers ``names`` and nothing else."""
    chosen, out = set(names), []

    def cover(prefix: str, below: list[str]) -> None:
        if prefix and all(name in chosen for name in below):
            out.append(f"{prefix}.*" if below != [prefix] else prefix)
            return
        children: dict[str, list[str]] = {}
        for name in below:
            if name == prefix:
                continue
            head = name[len(prefix) + 1 :] if prefix else name
            child = head.split(".")[0]
            children.setdefault(f"{prefix}.{child}" if prefix else child, []).append(name)
        for child, group in children.items():
            if any(name in chosen for name in group):
                cover(child, group)

    cover("", list(universe))
    return out


def render(header: Sequence[str], rows: Sequence[Sequence[str | Sequence[str]]]) -> str:
    """Columns of text; a cell that is a list takes a line for each entry."""
    lines: list[list[str]] = [list(header)]
    for row in rows:
        cells = [[cell] if isinstance(cell, str) else list(cell) for cell in row]
        for i in range(max(1, *(len(cell) for cell in cells))):
            lines.append([cell[i] if i < len(cell) else "" for cell in cells])
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    rendered = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([rendered[0], "-" * len(rendered[0]), *rendered[1:]])
