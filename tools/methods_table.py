"""The table of all methods in docs/methods.md, from what ``modgrad demo --balancers all`` measured.

python tools/methods_table.py demo_results/demo.json    # keep the numbers, rewrite the table
python tools/methods_table.py                           # rewrite the table from those kept

A run of some balancers, with the options of the kept one, replaces their numbers and no others.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "av-digits.json"
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- begin table of methods -->\n", "<!-- end table of methods -->\n"
OUTPUTS = ("joint", "audio", "visual")


def keep(demo: dict[str, Any]) -> dict[str, Any]:
    """The accuracy after training of each seed, and how it came about."""
    accuracy: dict[str, dict[str, list[float]]] = {}
    for run in demo["runs"]:
        for output, value in run["epochs"][-1]["accuracy"].items():
            accuracy.setdefault(run["method"], {}).setdefault(output, []).append(value)
    options = {k: v for k, v in demo["options"].items() if k not in ("output", "balancers")}
    about = {name: demo[name] for name in ("device", "backend", "versions", "balancers")}
    return {"options": options, **about, "accuracy": accuracy, "timings": demo["timings"]}


def merged(kept: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The kept numbers with those of the new run's balancers in place of their own, or all new."""
    if kept["balancers"].keys() <= new["balancers"].keys():
        return new
    if kept["options"] != new["options"]:
        raise ValueError(f"options are {new['options']}, allowed: those kept, {kept['options']}")
    out = dict(kept)
    for part in ("balancers", "accuracy", "timings"):
        out[part] = kept[part] | {k: v for k, v in new[part].items() if k in new["balancers"]}
    return out


def cell(values: list[float]) -> str:
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def table(kept: dict[str, Any]) -> str:
    rows = ["| method | joint | audio | visual | step |", "| --- | --- | --- | --- | --- |"]
    accuracy, timings = kept["accuracy"], kept["timings"]
    unbalanced = [name for name in accuracy if name not in kept["balancers"]]
    balanced = sorted(kept["balancers"], key=lambda name: -mean(accuracy[name]["joint"]))
    for name in [*unbalanced, *balanced]:
        cells = [cell(accuracy[name][o]) if o in accuracy[name] else "" for o in OUTPUTS]
        step = f"{1 + timings[name]['overhead']:.2f}" if name in timings else ""
        rows.append(f"| {' | '.join([name, *cells, step])} |")
    return "\n".join(rows) + "\n"


def main(arguments: list[str]) -> None:
    if arguments:
        kept = keep(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        if KEPT.exists():
            kept = merged(json.loads(KEPT.read_text(encoding="utf-8")), kept)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    PAGE.write_text(before + BEGIN + table(kept) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
