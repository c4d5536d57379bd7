"""The table of methods in the docs says what was measured."""

import importlib.util
import json
import os
from pathlib import Path

from modgrad.demo.methods import METHODS

ROOT = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))


def script():
    path = ROOT / "tools" / "methods_table.py"
    spec = importlib.util.spec_from_file_location("methods_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_kept_numbers():
    module = script()
    page = module.PAGE.read_text(encoding="utf-8")
    written = page.split(module.BEGIN)[1].split(module.END)[0]
    kept = json.loads(module.KEPT.read_text(encoding="utf-8"))
    assert written == module.table(kept)
    assert set(kept["accuracy"]) == set(METHODS), "a method of the demo is not in the table"
    assert {len(v) for row in kept["accuracy"].values() for v in row.values()} == {5}
