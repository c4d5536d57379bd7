"""What a run leaves behind, and what a report makes of it."""

import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import networks
import pytest
import torch
from dispatched import Ops
from torch._subclasses.fake_tensor import FakeTensorMode

import modgrad
from modgrad import diagnostics
from modgrad.__main__ import main
from modgrad.demo import steps, training
from modgrad.demo.network import MODALITIES, Network, make_optimizer
from modgrad.demo.options import Options
from modgrad.diagnostics import Attribution, Log, Overfitting, Run, Utilization
from modgrad.diagnostics.log import FILE
from modgrad.records import LastStep

TWO = ("audio", "visual")
NORMS = ["grad_sq_norms", "param_sq_norms"]


def trainer(record=NORMS, balancer=None, losses=("joint",), modalities=TWO):
    net = networks.LateFusion(modalities)
    return net, modgrad.ModulatedOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1),
        modgrad.Modalities(net, **net.specs()),
        balancer or modgrad.OGM(alpha=0.5),
        record=record,
        losses=losses,
    )


def take_step(net, optimizer, scale=1.0):
    inputs, targets = networks.batch(tuple(net.encoders))
    features, logits = net(inputs)
    loss = torch.nn.functional.cross_entropy(logits, targets) * scale
    optimizer.zero_grad()
    if len(optimizer.modulator.losses) > 1:
        optimizer.backward({"joint": loss, "other": (logits**2).mean()})
    else:
        loss.backward()
        optimizer.observe(features=features, head=net.head, targets=targets)
    optimizer.step()


def attribution(audio, visual, error=0.01, joint=0.9, baseline=0.1):
    pair = {"audio": audio, "visual": visual}
    same = dict.fromkeys(TWO, error)
    response = {"audio": 0.3, "visual": 0.8}
    return Attribution(pair, same, dict.fromkeys(TWO, 0.0), pair, response, joint, baseline, 500)


# log


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_log_holds_what_the_steps_measured(tmp_path, every):
    net, optimizer = trainer()
    log, expected = Log(tmp_path / "run", every=every), []
    for _ in range(7):
        take_step(net, optimizer)
        log.step(optimizer.modulator)
        log.step(optimizer.modulator)  # the same step: once
        expected.append(optimizer.modulator.last)
    log.record(train_losses={"joint": torch.tensor(0.5)})
    for run in (log.run, Run.read(tmp_path / "run"), Run.read(tmp_path / "run" / FILE)):
        assert run.header["modalities"] == list(TWO)
        assert run.header["losses"] == ["joint"]
        assert [row["step"] for row in run.steps] == [1, 2, 3, 4, 5, 6, 7]
        for name in ("weights", "scores", *NORMS):
            stacked = torch.stack([getattr(last, name) for last in expected]).double()
            assert run.series(name)[1].tolist() == stacked.tolist()
        assert run.results == [{"step": 7, "train_losses": {"joint": 0.5}}]


def test_a_log_of_several_losses_and_of_changing_statistics(tmp_path):
    net, optimizer = trainer(["gram"], modgrad.FixedLossWeights([1.0, 0.5]), ("joint", "other"))
    log = Log()
    take_step(net, optimizer)
    log.step(optimizer.modulator)
    optimizer.modulator.last = replace(optimizer.modulator.last, gram=None)
    log.step(optimizer.modulator)
    run = log.run
    assert run.series("gram")[1].shape == (1, 2, 2, 2)
    assert run.series("losses")[1].shape == (2, 2)
    assert run.series("weights")[1].shape == (2, 2, 2)
    assert "gram" not in run.steps[1]


def test_steps_without_modulation_are_not_logged(tmp_path):
    net, optimizer = trainer()
    log = Log()
    log.step(optimizer.modulator)
    take_step(net, optimizer)
    log.step(optimizer.modulator)
    optimizer.modulator.enabled = False
    take_step(net, optimizer)
    log.step(optimizer.modulator)
    assert len(log.run.steps) == 1


def test_step_reads_nothing_and_a_flush_reads_once(monkeypatch):
    net, optimizer = trainer()
    take_step(net, optimizer)
    log, modulator = Log(every=10**6), optimizer.modulator
    real = modulator.last
    with FakeTensorMode():  # tensors that cannot be read
        fakes = {name: torch.empty(2, dtype=torch.float64) for name in ("weights", *NORMS)}
        for _ in range(3):
            modulator.last = replace(real, scores=None, noise=None, **fakes)
            log.step(modulator)
    log._pending.clear()
    calls, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (calls.append(1), cpu(self))[1])
    for _ in range(5):
        modulator.last = replace(real)
        log.step(modulator)
    assert calls == []
    log.flush()
    assert calls == [1]


@pytest.mark.parametrize("name", ["attributions", "conditional_utilization"])
def test_a_loop_over_batches_reads_at_its_end_alone(name):
    def reads(batches):
        batch = torch.randn(5, 2, 4), torch.randint(0, 4, (5,))
        with Ops() as ops:
            getattr(diagnostics, name)(lambda b, s: b[0][:, 0] + len(s), [batch] * batches, TWO)
        return ops.reads

    assert reads(1) == reads(9)


def test_what_is_not_finite_is_null(tmp_path):
    net, optimizer = trainer()
    log = Log(tmp_path)
    take_step(net, optimizer, scale=math.nan)
    log.step(optimizer.modulator)
    log.record(accuracy={"joint": math.nan}, note=[math.inf, 1, True, None, "x"])
    text = (tmp_path / FILE).read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert log.run.steps[0]["grad_sq_norms"] == [None, None]
    assert log.run.last("note") == [None, 1, True, None, "x"]


def test_a_log_is_not_overwritten_but_resumed(tmp_path):
    net, optimizer = trainer()
    for resume in (False, True):
        log = Log(tmp_path, resume=resume)
        for _ in range(2):
            take_step(net, optimizer)
            log.step(optimizer.modulator)
        log.flush()
    assert [row["step"] for row in log.run.steps] == [1, 2, 3, 4]
    with pytest.raises(FileExistsError, match="resume=True"):
        Log(tmp_path)
    other, optimizer = trainer(modalities=("audio", "text"))
    log = Log(tmp_path, resume=True)
    take_step(other, optimizer)
    with pytest.raises(ValueError, match="modalities"):
        log.step(optimizer.modulator)


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("cut", ["", '{"kind": "st', '{"kind": "result", "step": 9, "x": 1}'])
def test_a_log_that_was_cut_off_is_resumed(tmp_path, kept, cut):
    """What is after the last newline is lost, and nothing else, before or after."""
    net, optimizer = trainer()
    log = Log(tmp_path, every=1)
    for _ in range(3):
        take_step(net, optimizer)
        log.step(optimizer.modulator)
    file = tmp_path / FILE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:kept]) + cut)
    log = Log(tmp_path, resume=True)
    log.record(accuracy={"joint": 0.5})
    log.record(accuracy={"joint": 0.6})
    run = Run.read(tmp_path)
    assert [row["step"] for row in run.steps] == list(range(1, kept))  # the first line is a header
    assert [row["accuracy"]["joint"] for row in run.results] == [0.5, 0.6]
    assert run.results[0]["step"] == max(kept - 1, 0)


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("modgrad.diagnostics.log._first_rank", lambda: False)
    net, optimizer = trainer()
    log = Log(tmp_path / "run", every=1)
    take_step(net, optimizer)
    log.step(optimizer.modulator)
    log.record(accuracy={"joint": 1.0})
    assert not (tmp_path / "run").exists()


def test_bad_logs_are_named(tmp_path):
    with pytest.raises(ValueError, match="every"):
        Log(every=0)
    with pytest.raises(TypeError, match="dict"):
        Log().record({"joint": 1.0})
    with pytest.raises(TypeError, match="accuracy"):
        Log().record(accuracy=0.9)
    with pytest.raises(ValueError, match="step"):
        Log().record(step=1)
    with pytest.raises(FileNotFoundError, match=re.escape(FILE)):
        Run.read(tmp_path)
    file = tmp_path / FILE
    file.write_text("")
    with pytest.raises(ValueError, match="no records"):
        Run.read(tmp_path)
    good = json.dumps({"kind": "result", "step": 1, "accuracy": {}})
    file.write_text(f"{good}\n{good[:9]}")  # cut off while writing
    assert len(Run.read(tmp_path).results) == 1
    for bad in (f"{good[:9]}\n{good}\n", '{"kind": "other"}\n', "3\n"):
        file.write_text(bad)
        with pytest.raises(ValueError, match="line 1"):
            Run.read(tmp_path)


# findings


def summary(*results, **values):
    log = Log()
    log.record(*results, **values)
    return diagnostics.summarise(log.run)


def test_a_modality_below_half_of_an_equal_share_is_neglected():
    found = summary(attribution(0.1, 0.7))
    assert found.neglected == ("audio",)
    assert found.sentences[0].startswith("audio is neglected: it contributes 12 % of the accuracy")
    assert any("Train audio alone" in text for text in found.advice)
    assert summary(attribution(0.21, 0.59)).neglected == ()
    assert summary(attribution(0.21, 0.59)).sentences[0].startswith("No modality is neglected")


def test_what_the_samples_do_not_show_is_not_claimed():
    found = summary(attribution(0.19, 0.61))  # 24 % and an error of 1.2 %
    assert found.neglected == ()
    assert found.sentences[0].startswith("audio may be neglected")
    assert any("more samples" in text for text in found.advice)


def test_a_weak_modality_is_not_neglected():
    values = {"accuracy": {"audio": 0.28}}
    found = summary(attribution(0.1, 0.7), ceiling={"audio": 0.3}, **values)
    assert found.neglected == ()
    assert found.sentences[0].startswith("audio is weak, not neglected")
    found = summary(attribution(0.1, 0.7), ceiling={"audio": 0.8}, **values)
    assert found.neglected == ("audio",)
    assert "its branch reaches 28 %, and alone it reaches 80 %" in found.sentences[0]
    assert not any("Train audio alone" in text for text in found.advice)


def test_limits_say_so():
    found = summary(attribution(0.0, 0.0, joint=0.1))
    assert "no better than guessing" in found.sentences[0]
    used = Utilization(
        {"audio": {"visual": 0.6}, "visual": {"audio": 0.05}},
        {"audio": {"visual": 0.01}, "visual": {"audio": 0.01}},
        {"audio": 0.9, "visual": 0.9},
        500,
    )
    found = summary(used)
    assert "cannot be said" in found.sentences[0]
    assert "loses 5 % without audio, 60 % without visual" in found.sentences[1]
    with pytest.raises(ValueError, match="no modalities"):
        summary(accuracy={"joint": 0.5})
    worse = Overfitting({"audio": math.inf}, {"audio": 1.0}, {"audio": -1.0})
    found = summary(attribution(0.4, 0.4), worse)
    assert "The validation loss rose of audio." in found.sentences


def test_the_unimodal_phase_is_told():
    log = Log()
    for step, (audio, visual) in enumerate([(0, 0.1), (0, 0.4), (0, 0.4), (0.1, 0.4), (0.4, 0.4)]):
        log._steps = 10 * step
        log.record(attribution(audio, visual))
    (text,) = (t for t in diagnostics.summarise(log.run).sentences if "learned first" in t)
    # visual: half of 0.4 a third of the way from 0 to 10; audio: from 30 to 40
    first = "visual was learned first: half of its contribution by step 3"
    assert text == f"{first}; audio reached half of its own 30 steps later."


# report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def logged(tmp_path):
    pytest.importorskip("matplotlib")
    net, optimizer = trainer(["gram", "grad_sq_norms"], modgrad.PCGrad(), ("joint", "other"))
    log = Log(tmp_path / "a run")
    for scale in (1.0, 1.0, math.nan, 1.0):
        take_step(net, optimizer, scale)
        log.step(optimizer.modulator)
    log.record(attribution(0.1, 0.7), train_losses={"joint": 1.0}, validation_losses={"joint": 2})
    log.record(attribution(0.1, 0.7), accuracy={"audio": 0.3, "visual": None})
    return tmp_path / "a run"


def test_the_page_is_self_contained(logged):
    report = diagnostics.report(logged)
    assert report.html.parent == report.png.parent == logged
    text = report.html.read_text()
    found = Page(text)
    links = [v for _, a in found.tags for k, v in a.items() if k in ("src", "href", "srcset")]
    assert len(links) == 1
    head, _, data = links[0].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == report.png.read_bytes()
    assert report.png.read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert "nan" not in found.text.lower().split()
    for sentence in (*report.summary.sentences, *report.summary.advice):
        assert sentence in found.text
    assert any("not finite" in sentence for sentence in report.summary.sentences)
    assert "audio is neglected" in str(report)
    assert ("img", "alt") in {(tag, k) for tag, a in found.tags for k in a}


def test_names_are_escaped():
    from modgrad.diagnostics.findings import Summary
    from modgrad.diagnostics.page import page

    made = page("<a>", "<b>", Summary((), ("<c>",), ("<d>",), {"<e>": {"<f>": 1.0}}), b"")
    assert not {tag for tag, _ in Page(made).tags} & set("abcdef")


def test_the_same_run_gives_the_same_page(logged, tmp_path):
    a, b = (diagnostics.report(logged, tmp_path / name) for name in "ab")
    assert a.html.read_bytes() == b.html.read_bytes()


def test_records_in_memory_and_three_modalities(tmp_path):
    pytest.importorskip("matplotlib")
    names = ("audio", "visual", "text")
    net, optimizer = trainer(modalities=names)
    log = Log()
    for _ in range(3):
        take_step(net, optimizer)
        log.step(optimizer.modulator)
    y = torch.arange(4).repeat(5)
    loader = [(torch.nn.functional.one_hot(y).float(), y)]
    log.record(
        diagnostics.attributions(lambda b, s: b[0] * ("text" in s), loader, names),
        diagnostics.conditional_utilization(lambda b, r: b[0] * ("text" not in r), loader, names),
    )
    with pytest.raises(ValueError, match="output"):
        diagnostics.report(log.run)
    report = diagnostics.report(log.run, tmp_path)
    assert set(report.summary.neglected) == {"audio", "visual"}


def test_groups_of_fusion_parameters_are_no_modalities(tmp_path):
    """Gradients are of four groups, contributions of two modalities."""
    pytest.importorskip("matplotlib")
    log = Log()
    names = ("audio_fusion", "visual", "visual_fusion", "audio")
    norms = torch.arange(1.0, 5).double().square()
    last = LastStep(names, torch.tensor([1.0, 1.0, 0.5, 0.5]), grad_sq_norms=norms)
    header = {"modalities": SimpleNamespace(names=names), "losses": ("joint",), "balancer": None}
    log.step(SimpleNamespace(last=last, **header))
    log.record(attribution(0.1, 0.7), learning_speed={"audio": -0.5, "visual": 0.2})
    report = diagnostics.report(log.run, tmp_path)
    assert report.summary.neglected == ("audio",)
    table = report.summary.table
    assert table["share of the gradient norm"]["audio"] == pytest.approx(0.4)
    assert table["contribution to accuracy"]["audio_fusion"] is None
    assert table["conditional learning speed"]["audio"] == -0.5


def test_a_report_of_results_alone(tmp_path):
    pytest.importorskip("matplotlib")
    log = Log()
    log.record(attribution(0.1, 0.7))
    assert diagnostics.report(log.run, tmp_path).summary.neglected == ("audio",)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    log = Log(tmp_path / "run")
    log.record(attribution(0.1, 0.7))
    monkeypatch.setattr("modgrad.diagnostics.extras.find_spec", lambda name: None)
    assert main(["diagnose", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error == "modgrad diagnose: report needs matplotlib: pip install modgrad[diagnostics]\n"
    assert [p.name for p in (tmp_path / "run").iterdir()] == [FILE]


# command line


def test_diagnose_writes_and_prints(logged, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "modgrad", "diagnose", str(logged), "--output", str(tmp_path / "o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "audio is neglected" in done.stdout
    assert str(tmp_path / "o" / "report.html") in done.stdout
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["report.html", "report.png"]


def test_diagnose_says_what_is_missing(tmp_path, capsys):
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "no log at" in capsys.readouterr().err
    (tmp_path / FILE).write_text("")
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "no records" in capsys.readouterr().err


# AV-Digits


@pytest.mark.parametrize(("balanced", "epochs"), [(False, 5), (True, 9)], ids=["plain", "balanced"])
def test_the_report_names_the_neglected_branch_of_av_digits(tmp_path, balanced, epochs):
    """Plain training leaves the audio 0.13 of the accuracy, a loss of its own 0.43; errors 0.01."""
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    setting = training.prepare(Options(), torch.device("cpu"), "reference")
    torch.manual_seed(0)
    net = Network()
    optimizer = modgrad.ModulatedOptimizer(
        make_optimizer(net, 0.05),
        net.modalities(),
        modgrad.FixedLossWeights([1.0] * 3) if balanced else modgrad.FixedWeights({}),
        losses=("joint", *MODALITIES) if balanced else ("joint",),
        record=["grad_sq_norms"],
    )
    step = steps.several if balanced else steps.plain
    log, generator = Log(tmp_path), torch.Generator().manual_seed(0)

    def features(batch):
        return net.features(batch[0])

    def forward(batch, present):
        filled = diagnostics.fill_means(features(batch), means, set(MODALITIES) - present)
        return net.head(torch.cat(list(filled.values()), 1))

    for _ in range(epochs):
        net.train()
        for batch in setting.train.batches(64, generator):
            step(net, optimizer, *batch)
            log.step(optimizer.modulator)
    means = diagnostics.FeatureMeans.over(
        features, setting.train.batches(256, generator), model=net
    ).means()
    test = list(setting.test.batches(256, generator))
    log.record(diagnostics.attributions(forward, test, MODALITIES, model=net))
    report = diagnostics.report(tmp_path)
    torch.set_num_threads(threads)
    assert report.summary.neglected == (() if balanced else ("audio",))
    verdict = "No modality is neglected" if balanced else "audio is neglected: it contributes 1"
    assert report.summary.sentences[0].startswith(verdict)
