"""What README and docs show is run; their links lead somewhere."""

import os
import re
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))
PAGES = [SOURCE / "README.md", SOURCE / "CONTRIBUTING.md", *sorted((SOURCE / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def after_diff(text):
    """The program that a diff leads to."""
    return "\n".join(line[2:] for line in text.splitlines() if not line.startswith("-"))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page are one program, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, f"{page.name}", "exec"), namespace)


def test_the_diff_runs():
    readme = SOURCE / "README.md"
    (diff,) = blocks(readme, "diff")
    (setup,) = re.findall(r"<!-- setup of the diff\n(.*?)-->", readme.read_text(), re.S)
    for program in (
        after_diff(diff),
        "\n".join(line[2:] for line in diff.splitlines() if not line.startswith("+")),
    ):
        namespace = {"__name__": "page"}
        exec(compile(setup, "setup", "exec"), namespace)
        exec(compile(program, "diff", "exec"), namespace)
    assert diff.count("\n+") <= 6


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_two_commands_stand_on_the_first_screen():
    first = "\n".join((SOURCE / "README.md").read_text().splitlines()[:60])
    assert "make demo" in first
    assert "make test" in first


def test_the_command_of_ci_is_the_readmes():
    assert "make test" in (SOURCE / ".ci" / "run").read_text()
