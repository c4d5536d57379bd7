"""One self-contained HTML page: words, a table, the figure inside."""

import base64
from html import escape

from modgrad.diagnostics.findings import Summary

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111;
       background: #fff }
img { max-width: 100% }
table { border-collapse: collapse }
th, td { text-align: right; padding: 0.2em 0.8em; border-bottom: 1px solid #999 }
th:first-child { text-align: left }
.first { font-weight: bold }
"""


def page(title: str, balancer: str, summary: Summary, figure: bytes) -> str:
    """HTML; the PNG is embedded, nothing is fetched."""
    image = base64.b64encode(figure).decode("ascii")
    said = "\n".join(
        f'<p class="first">{escape(text)}</p>' if i == 0 else f"<p>{escape(text)}</p>"
        for i, text in enumerate(summary.sentences)
    )
    tried = "".join(f"<li>{escape(text)}</li>\n" for text in summary.advice)
    advice = f"<h2>What could be tried</h2>\n<ul>\n{tried}</ul>" if tried else ""
    by = f"<p>Balancer: <code>{escape(balancer)}</code></p>" if balancer else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{by}
{said}
{advice}
<h2>Numbers</h2>
{_table(summary)}
<h2>Curves</h2>
<img alt="Curves and bars by modality; the table above has their last values"
 src="data:image/png;base64,{image}">
</body>
</html>
"""


def cell(quantity: str, value: float | None) -> str:
    """A number of the table; most are parts of 1."""
    if value is None:
        return "-"
    if quantity in ("mean weight", "competition strength", "conditional learning speed"):
        return f"{value:.3g}"
    return f"{100 * value:.1f} %"


def _table(summary: Summary) -> str:
    if not summary.table:
        return "<p>None were recorded.</p>"
    names = list(next(iter(summary.table.values())))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(quantity)}</th>'
        + "".join(f"<td>{cell(quantity, row[name])}</td>" for name in names)
        + "</tr>\n"
        for quantity, row in summary.table.items()
    )
    return f"<table>\n<tr><th></th>{head}</tr>\n{rows}</table>"
