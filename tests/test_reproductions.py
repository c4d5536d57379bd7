"""The reproductions, in their smallest version: every gate of theirs holds."""

import os
import runpy
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1])) / "examples/reproduce"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "def main(" in path.read_text())


def test_all_are_documented():
    assert len(SCRIPTS) >= 4
    page = (FOLDER.parents[1] / "docs" / "reproductions.md").read_text()
    assert [name for name in SCRIPTS if name not in page] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_reproduction(script, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    main = runpy.run_path(str(FOLDER / script))["main"]
    assert main(["--quick", "--output", str(tmp_path)]) == 0, capsys.readouterr().out
    figure = (tmp_path / script).with_suffix(".png")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_value_that_is_not_as_expected_fails(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    report = runpy.run_path(str(FOLDER / "report.py"))["Report"](
        "name", "A title.", ["--output", str(tmp_path)]
    )
    figure, _ = report.axes(1)
    report.row("good", "1", "1", True)
    assert report.finish(figure) == 0
    report.row("bad", "1", "2", False)
    assert report.finish(figure) == 1
