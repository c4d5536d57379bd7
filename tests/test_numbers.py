"""Every measured number in the pages has a source: a line of JSON in the repository.

Between bench markers numbers are made from such lines. Elsewhere a paragraph, list or table says
in comments of its own where its numbers are from, and which of them are no measurements, and why:

    <!-- measured in ../benchmarks/results/notes.jsonl: noise -->
    <!-- given 10 % | 0.5: the released code's -->
"""

import json
import os
import re
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))
NAMES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"]
PAGES = [*(SOURCE / name for name in NAMES), *sorted((SOURCE / "docs").glob("*.md"))]
IDS = [page.name if page.parent != SOURCE / "benchmarks" else "bench" for page in PAGES]

# Made from committed lines by modgrad.bench.report and tools/methods_table.py, whose tests compare.
GENERATED = r"<!-- bench \S.*?<!-- end of bench -->|<!-- begin table.*?<!-- end table.*?-->"
CODE = r"^```.*?^```$|^ {4}.*?$|`[^`]*`|\]\([^)]*\)"
VERSION = r"(?:torch|Python|CUDA|nvcc|GCC|target|BY) (?:from |\()?\d+(?:\.\d+)*"
COMMENT = re.compile(r"<!-- (measured in|given) ([^:]*?)(?:: (.*?))? -->", re.S)

VALUE = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
UNIT = r"(?:%|(?:ns|us|ms|s|seconds?|minutes?|hours?|times|[GMT]B/s|x(?! ?\d))\b|-fold\b)"
WORD = "one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|hundred|thousand"
SPAN = r"(?:micro|milli|nano)?seconds?|minutes?|hours?|times"
NUMBER = re.compile(
    rf"(?<![\w.])(?:{VALUE} ?{UNIT}|\d+\.\d+(?:e[-+]?\d+)?|\d+e-?\d+)|\b(?:{WORD}) (?:{SPAN})\b"
)
MEASURED_COLUMN = re.compile(r"\b(?:ms|us|ns|ratio|obtained|accuracy|error|right)\b|%")


def paragraphs(text):
    """What stands between blank lines, without code and what is generated."""
    text = re.sub(GENERATED, "", text, flags=re.S)
    return re.split(r"\n\s*\n", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))


def numbers(paragraph):
    """Decimals, powers of ten, what has a unit, and the cells of columns of measurements."""
    text = re.sub(r"<!--.*?-->", "", paragraph, flags=re.S)
    text = re.sub(VERSION, "", re.sub(CODE, "", text, flags=re.S | re.M))
    found = NUMBER.findall(text)
    rows = [line.strip(" |").split(" | ") for line in text.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        for head, cell in zip(rows[0], row, strict=False):
            if MEASURED_COLUMN.search(head):
                bare = NUMBER.sub("", cell)
                found += re.findall(rf"(?<![\w.]){VALUE}", bare)
    return found


def value_of(text):
    return float(re.search(VALUE, text)[0].replace(",", ""))


def agrees(text, value):
    """Whether the value, rounded as the text is, is the text's."""
    if not (match := re.search(VALUE, text)):
        return False
    digits, _, exponent = match[0].replace(",", "").partition("e")
    decimals = len(digits.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals)
    return abs(abs(value) - value_of(text)) <= 0.5000001 * unit


def values(folder, target, wanted):
    """All numbers of the lines that are named, or of the whole file."""
    path = folder / target.strip()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = None if wanted is None else {name.strip() for name in wanted.split("|")}
    unknown = set() if names is None else names - {line["what"] for line in lines}
    assert not unknown, f"{path} has no line {unknown}"
    out = []
    for line in lines:
        if names is None or line["what"] in names:
            parts = [line[k] for k in ("what", "expected", "obtained", "values") if k in line]
            text = json.dumps(parts)
            out += [float(x.replace(",", "")) for x in re.findall(VALUE, text)]
    return out


def faults(text, folder):
    """Numbers of a page without a source, and sources without a number."""
    found = []
    for paragraph in paragraphs(text):
        left = numbers(paragraph)
        for kind, target, reason in COMMENT.findall(paragraph):
            if kind == "given":
                assert reason, f"{target}: why?"
                for one in re.split(r" \| ", " ".join(target.split())):
                    if one not in left:
                        found.append(f"{one} is given and not there")
                    left = [number for number in left if number != one]
            else:
                known = values(folder, target, reason or None)
                remaining = [x for x in left if not any(agrees(x, v) for v in known)]
                if len(remaining) == len(left):
                    found.append(f"{target} explains no number")
                left = remaining
        found += [f"{number!r} in: {paragraph.strip()[:60]}" for number in left]
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_number_has_a_source(page):
    assert faults(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize(
    "text",
    ["It takes 3 ms.", "0.47 of it", "twice: 2.0x", "7 % more", "ten microseconds", "off by 3e-5"],
)
def test_a_number_without_a_source_is_found(text, tmp_path):
    assert len(faults(f"A claim.\n\n{text}\n", tmp_path)) == 1


def test_a_bare_number_in_a_column_of_times_is_found(tmp_path):
    table = "| op | {} |\n| --- | --- |\n| a | 425 |\n"
    assert len(faults(table.format("us"), tmp_path)) == 1
    assert faults(table.format("tensors"), tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "`0.47`",
        "torch 2.13.0",
        "```sh\n0.47\n```",
        "    x = 0.47",
        "[a](b/0.47)",
        "64 x 10, 24 tests",
    ],
)
def test_what_is_no_measurement(text, tmp_path):
    assert faults(text, tmp_path) == []


@pytest.mark.parametrize(
    ("claim", "good"),
    [
        ("0.47 times", True),
        ("0.472 times", True),
        ("0.5 times", True),
        ("0.48 times", False),
        ("0.47 times or 0.93 times", False),
        ("1,230 us", True),
        ("1,231 us", False),
    ],
)
def test_numbers_are_compared_with_their_source(claim, good, tmp_path):
    line = {"what": "speed", "values": {"ratio": 0.4721, "us": 1230.2}}
    other = {"what": "other", "values": [0.93]}
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, (line, other))))
    found = faults(f"{claim}\n<!-- measured in notes.jsonl: speed -->\n", tmp_path)
    assert (found == []) == good


def test_sources_and_exemptions_are_narrow(tmp_path):
    (tmp_path / "notes.jsonl").write_text('{"what": "speed", "values": [0.47]}')
    assert faults("2.5 %\n<!-- given 2.5 %: the paper's -->", tmp_path) == []
    assert len(faults("2.5 %\n\n<!-- given 2.5 %: the paper's -->", tmp_path)) == 2
    assert len(faults("2.5 %, 3 %\n<!-- given 2.5 %: the paper's -->", tmp_path)) == 1
    assert len(faults("2.5 %\n<!-- given 2.5 % | 9 %: the paper's -->", tmp_path)) == 1
    assert faults("A word.\n<!-- measured in notes.jsonl -->", tmp_path) != []
    with pytest.raises(AssertionError, match="why"):
        faults("2.5 %\n<!-- given 2.5 % -->", tmp_path)
    with pytest.raises(AssertionError, match="no line"):
        faults("0.47\n<!-- measured in notes.jsonl: nothing -->", tmp_path)


def test_notes_say_how_they_were_made():
    lines = (SOURCE / "benchmarks/results/notes.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        assert {"what", "values", "conditions", "command", "device", "threads"} <= set(line)
        assert {"torch", "modgrad", "commit", "date"} <= set(line)
