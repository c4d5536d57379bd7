"""The harness of the benchmarks: it sees what differs, gates what is wrong, reports what it saw."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modgrad.__main__ import main
from modgrad.bench import (
    baselines,
    command,
    lightning,
    models,
    other_methods,
    report,
    scaling,
    suite,
)
from modgrad.bench.arguments import Options
from modgrad.bench.case import AGAIN, Case
from modgrad.bench.cost import cost
from modgrad.bench.report import BLOCKS, filled
from modgrad.bench.results import cases, read
from modgrad.bench.scaling import slope
from modgrad.bench.suite import entries
from modgrad.bench.table import number, slopes
from modgrad.bench.timing import Flush, interleaved

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))
KEPT = SOURCE / "benchmarks" / "results" / "cpu-2-cores"
PAGES = [SOURCE / "benchmarks" / "README.md", SOURCE / "README.md", SOURCE / "docs" / "kernels.md"]


pytestmark = pytest.mark.usefixtures("one_thread")


def bench(folder, *arguments):
    return main(["bench", "--quick", "--output", str(folder), *arguments])


def test_a_doubled_pass_is_seen_and_equal_passes_are_not():
    """Sums over 4 MB, 0.2 to 1 ms: medians of 100 rounds stand a busy machine."""
    x = torch.randn(2**20)
    once = x.sum

    def twice():
        once()
        once()

    measured = interleaved({"once": once, "same": once, "twice": twice}, 0.5, least=100)
    assert measured["twice"].ratio > 1.5
    assert 0.7 < measured["same"].ratio < 1.4
    assert measured["once"].ratio == 1
    assert measured["once"].q20 <= measured["once"].median <= measured["once"].q80


def test_a_slow_provider_sits_out_rounds_and_keeps_its_pairs():
    x = torch.randn(2**16)

    def slow():
        for _ in range(40):
            x.sum()

    measured = interleaved({"fast": x.sum, "slow": slow}, 0.2, least=5)
    assert measured["slow"].rounds < measured["fast"].rounds
    assert measured["slow"].rounds >= 3
    assert 5 < measured["slow"].ratio < 200


def test_rounds_end():
    done = []
    measured = interleaved({"a": lambda: None}, 60.0, most=20, progress=done.append)
    assert measured["a"].rounds == 20
    assert done == sorted(done)
    assert interleaved({"a": lambda: None}, 0.0, least=7)["a"].rounds == 7


def test_flush_reads_twice_the_cache():
    flush = Flush("cpu", 4096)
    flush()
    assert flush._buffer.numel() * 4 == 8192


def test_cost_counts_ops_without_views_and_host_reads():
    x = torch.randn(3, 4)
    counted = cost(lambda: x.view(12).mul(2.0).sum().item(), "cpu")
    assert counted.dispatched_ops == 3  # mul, sum, the read
    assert counted.host_reads == 1
    assert counted.device_kernels is None
    assert cost(lambda: x + 1, "cpu", dispatched=False).dispatched_ops is None
    assert cost(lambda: x.add_(1), "cpu").host_reads == 0


def test_cost_counts_memory_that_is_alive_at_once():
    x = torch.randn(1000)

    def one_after_the_other():
        for _ in range(3):
            x * 2

    def together():
        kept = [x * 2 for _ in range(3)]
        del kept

    assert cost(one_after_the_other, "cpu").peak_bytes == 4000
    assert cost(together, "cpu").peak_bytes == 12000
    assert cost(lambda: x.mul_(1), "cpu").peak_bytes == 0


def test_cost_counts_backward():
    x = torch.randn(5, requires_grad=True)
    assert cost(lambda: (x * x).sum().backward(), "cpu").dispatched_ops >= 4


def test_slope_of_the_upper_half():
    values = [10, 100, 1000, 10000, 100000, 1000000]
    assert slope(values, [1, 1, 1, *(n**1.5 for n in values[3:])]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1230"), (12.345, "12.3"), (1.0, "1.00"), (0.00123456, "0.00123"), (None, "")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_the_first_provider_is_timed_twice():
    case = Case("x", {"a": int, "b": int}, lambda: None, {})
    assert list(case.timed()) == ["a", "a" + AGAIN, "b"]
    assert case.timed()["a"] is case.timed()["a" + AGAIN]


def test_every_op_has_a_case():
    from modgrad.backends.protocol import SCHEMAS

    labels = " ".join(entry.label for entry in entries("cpu"))
    missing = [op for op in SCHEMAS if op.removesuffix("_backward") not in labels]
    assert [op for op in missing if op not in labels] == []


def test_a_full_run_leaves_time_for_the_build():
    """Of 15 minutes for `make bench` in a fresh clone."""
    assert sum(entry.estimate for entry in entries("cpu", curves=True)) < 11.5 * 60


@pytest.mark.parametrize("label", ["training step, 3 transformers", "optimizer step, 1000 small"])
def test_large_cases_pass_their_gates(label):
    (entry,) = [entry for entry in entries("cpu", quick=True) if entry.label == label]
    entry.build().check()


def _audio_visual():
    setting = models.audio_visual("cpu", 4, 64)
    steps = Case("training step", {}, lambda: None, setting.config, "training step")
    return other_methods.with_other_methods(steps, setting)


def test_agm_and_learning_speeds_agree_with_their_loops():
    case = _audio_visual()
    case.check()
    assert sum("loop" in name for name in case.providers) == 2


@pytest.mark.parametrize("name", ["PapersAGM", "PapersSpeeds"])
def test_a_wrong_loop_is_caught_by_the_gate(name, monkeypatch):
    if name == "PapersSpeeds":
        right = baselines.PapersSpeeds.__call__

        def wrong(self):
            right(self)
            self.speeds[0] += 0.1

        monkeypatch.setattr(baselines.PapersSpeeds, "__call__", wrong)
    else:
        monkeypatch.setattr(baselines.PapersAGM, "__init__", _twice_as_strong)
    with pytest.raises(AssertionError, match=r"differs from its like|learning speeds"):
        _audio_visual().check()


def _twice_as_strong(self, alpha):
    self.alpha, self.steps, self.means = 2 * alpha, 0, [0.0, 0.0]


def test_a_run_writes_lines_a_table_and_a_figure(tmp_path, capsys):
    assert bench(tmp_path, "--only", "modality_scores, 10 ") == 0
    rows = read(tmp_path / "bench.jsonl")
    wanted = {"kind", "op", "provider", "batch", "classes", "modalities", "dtype", "ratio_to"}
    wanted |= {"median_ms", "q20_ms", "q80_ms", "ratio", "rounds", "bytes", "floor_ms"}
    wanted |= {"percent_of_floor", "dispatched_ops", "host_reads", "device_kernels", "peak_bytes"}
    wanted |= {"device", "threads", "copy_gb_per_s", "torch", "modgrad", "commit", "date"}
    for row in rows:
        assert wanted | {"command"} <= set(row)
        assert 0 < row["q20_ms"] <= row["median_ms"] <= row["q80_ms"]
    by_name = {row["provider"]: row for row in rows}
    assert by_name["papers' loop"]["host_reads"] == 3 * 64
    assert by_name["modgrad, reference"]["host_reads"] == 0
    table = (tmp_path / "bench.txt").read_text()
    assert all(name in table for name in by_name)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "about" in capsys.readouterr().out


def test_no_time_is_printed_where_providers_disagree(tmp_path, monkeypatch, capsys):
    (entry,) = [e for e in entries("cpu", quick=True) if e.label == "scale_backward"]

    def build():
        def check():
            torch.testing.assert_close(torch.ones(1), torch.zeros(1))

        return replace(entry.build(), check=check)

    wrong = entry._replace(build=build)
    monkeypatch.setattr(command, "entries", lambda *_, **__: [wrong])
    assert bench(tmp_path) == 1
    printed = capsys.readouterr()
    assert "scale_backward" in printed.err
    assert "median" not in printed.out
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    (entry,) = [e for e in entries("cpu", quick=True) if e.label == "scale_backward"]

    def build():
        raise RuntimeError("out of memory")

    wrong = entry._replace(label="wrong", build=build)
    monkeypatch.setattr(command, "entries", lambda *_, **__: [wrong, entry._replace(seconds=0.1)])
    assert bench(tmp_path) == 1
    printed = capsys.readouterr()
    assert "RuntimeError: out of memory" in printed.err
    assert printed.err.endswith("no times of what failed:\n  wrong\n")
    rows = read(tmp_path / "bench.jsonl")
    assert {row["op"] for row in rows} == {"scale_backward"}


def test_a_wrong_provider_is_caught_by_the_gates(monkeypatch):
    """The gate of every op on lists sees a backend that does nothing."""
    from modgrad import ops

    case = suite.gradients.modulate_("1000 small", "cpu")
    case.check()
    monkeypatch.setattr(ops.native, "modulate_", lambda *_: None)
    case.providers["modgrad, native"] = lambda: None
    with pytest.raises(AssertionError):
        case.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "there are:\n  group_sq_norms, 1000 small\n  "),
        (["--device", "cuda"], "--device cpu"),
    ],
)
def test_what_cannot_run(arguments, message, tmp_path, capsys):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    assert bench(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr("modgrad.__main__.find_spec", lambda name: None)
    assert main(["bench"]) == 2
    assert "pip install modgrad[bench]" in capsys.readouterr().err


# the report


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(SOURCE)))
def test_the_pages_hold_what_the_lines_of_json_say(page):
    assert report.names(page), "no bench markers"
    assert filled(page) == page.read_text(), "run: python -m modgrad bench --report " + str(page)


def test_a_block_of_one_op_has_its_lines_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- bench ops {KEPT} modulate_ -->\n<!-- end of bench -->\n")
    text = filled(page)
    assert "| modulate_ | 1000 small | foreach |" in text
    assert "group_sq_norms" not in text


def test_the_command_names_no_folder(tmp_path):
    options = Options(device="cpu", scaling=True, only="a b", output=tmp_path)
    assert options.command() == "modgrad bench --device cpu --scaling --only 'a b'"


def test_the_lab_report_has_every_block():
    assert set(report.names(PAGES[0])) | set(report.names(PAGES[1])) == set(BLOCKS)


def test_a_changed_number_is_seen_and_put_right(tmp_path, capsys):
    (path,) = sorted(KEPT.glob("[0-9]*.jsonl"))[-1:]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "1.jsonl").write_text(path.read_text())
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench ops results -->\n1.23\n<!-- end of bench -->\nb\n")
    assert main(["bench", "--report", str(page)]) == 0
    text = page.read_text()
    assert "1.23\n" not in text
    assert text.startswith("a\n<!-- bench ops results -->\n| op |")
    assert text.endswith("<!-- end of bench -->\nb\n")
    assert main(["bench", "--report", str(page)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{page}: changed", f"{page}: as it was"]
    row = next(row for row in read(path) if row["kind"] == "op")
    assert number(row["median_ms"]) in text


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("nothing results", "no block"),
        ("ops nowhere", "no .jsonl"),
        (f"ops {KEPT} no such op", "no line of the op 'no such op'"),
    ],
)
def test_markers_that_name_nothing(marker, message, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- bench {marker} -->\n<!-- end of bench -->\n")
    assert main(["bench", "--report", str(page)]) == 2
    assert message in capsys.readouterr().err


def test_committed_lines_are_whole():
    for path in (SOURCE / "benchmarks" / "results").glob("*/[0-9]*.jsonl"):
        rows = read(path)
        assert {"op", "training step", "balancer", "optimizer step"} <= {r["kind"] for r in rows}
        for case in cases([row for row in rows if "missing" not in row]):
            assert case[0]["ratio"] == 1
            assert case[1]["provider"] == case[0]["provider"] + AGAIN
        json.dumps(rows, allow_nan=False)


def test_curves_do_without_the_libraries_that_are_missing(tmp_path, monkeypatch, capsys):
    """Four points, through the table and the figure, where Lightning is not installed."""
    monkeypatch.setattr(lightning, "why_not", lambda: "not installed")
    points = [p for p in scaling.points("cpu") if p[0] == "tensors" and p[1] <= 300]
    monkeypatch.setattr(scaling, "points", lambda device, quick=False: iter(points))
    assert bench(tmp_path, "--scaling", "--only", "scaling, tensors") == 0
    rows = read(tmp_path / "bench.jsonl")
    assert not [row for row in rows if "missing" in row]
    assert {op for _, op, *_ in slopes(rows)} == {"group_sq_norms", "modulate_"}
    assert "slope" in (tmp_path / "bench.txt").read_text()
