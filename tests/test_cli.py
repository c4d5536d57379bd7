import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modgrad.__main__ import main
from modgrad.backends import BACKENDS, why_not
from modgrad.demo.methods import ALONE, BALANCED, PLAIN
from modgrad.demo.results import Spread
from modgrad.demo.summary import sentence

METHODS = [PLAIN, *ALONE.values(), "ogm"]


pytestmark = pytest.mark.usefixtures("one_thread")


def modgrad(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modgrad", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


# doctor


def test_doctor_gives_every_backend_and_its_reason() -> None:
    result = modgrad("doctor", MODGRAD_BACKEND="")
    assert result.returncode == 0, result.stderr
    assert "cpu: " in result.stdout
    for name, reason in why_not("cpu").items():
        assert name in result.stdout
        assert all(line in result.stdout for line in (reason or "runs").splitlines())


@pytest.mark.parametrize("name", ["triton", "nonsense"])
def test_doctor_says_that_the_backend_asked_for_cannot_run(name: str) -> None:
    result = modgrad("doctor", MODGRAD_BACKEND=name, TRITON_INTERPRET="0")
    assert result.returncode == 0, result.stderr
    assert f"cpu: nothing runs with MODGRAD_BACKEND={name}: " in result.stdout
    assert all(backend in result.stdout for backend in BACKENDS)


def test_doctor_names_the_backend_asked_for() -> None:
    result = modgrad("doctor", MODGRAD_BACKEND="reference")
    assert "cpu: reference runs" in result.stdout


def test_doctor_needs_no_extra() -> None:
    code = """
import sys
from modgrad.__main__ import main
assert main(["doctor"]) == 0
assert not {"rich", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# demo


def demo(folder: Path, *more: str) -> dict:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    arguments = ["--epochs", "1", "--seeds", "1", "--balancers", "ogm", "--device", "cpu"]
    assert main(["demo", *arguments, "--output", str(folder), *more]) == 0
    return json.loads((folder / "demo.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return demo(folder)


def test_demo_measures_every_method(results: dict) -> None:
    assert [run["method"] for run in results["runs"]] == METHODS
    for method in METHODS:
        outputs = results["accuracy"][method]
        alone = [modality for modality, name in ALONE.items() if name == method]
        assert list(outputs) == (alone or ["joint", "audio", "visual"])
        assert all(0 <= value["mean"] <= 1 for value in outputs.values())
    assert list(results["timings"]) == [PLAIN, "ogm"]
    assert all(timing["median_ms"] > 0 for timing in results["timings"].values())
    weights = results["runs"][-1]["epochs"][0]["weights"]
    assert all(0 < weights[modality] <= 1 for modality in ("audio", "visual"))


def test_demo_draws(results: dict, folder: Path) -> None:
    figure = (folder / "demo.png").read_bytes()
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(figure) > 10_000
    text = (folder / "demo.txt").read_text(encoding="utf-8")
    assert all(word in text for word in (*METHODS[1:], "plain training", "1 seed"))


def test_demo_is_deterministic_and_names_its_files(
    results: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tmp_path)["runs"] == results["runs"]
    printed = capsys.readouterr().out
    assert all(str(tmp_path / f"demo.{end}") in printed for end in ("txt", "png", "json"))


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], "demo"),
        (["demo", "--balancers", "ogm,agmm"], ", ".join(BALANCED)),
        (["demo", "--balancers", ""], ", ".join(BALANCED)),
        (["demo", "--epochs", "0"], "whole number >= 1"),
        (["demo", "--seeds", "-1"], "whole number >= 1"),
        (["demo", "--batch-size", "many"], "whole number >= 1"),
        (["demo", "--lr", "nan"], "number > 0"),
        (["demo", "--image-noise", "-1"], "number >= 0"),
        (["demo", "--backend", "cuda"], "reference"),
        (["demo", "--device", "tpu"], "auto"),
    ],
)
def test_bad_options(
    arguments: list[str], allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert allowed in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({}, ["--backend", "triton"], "cannot run on cpu"),
        ({"MODGRAD_BACKEND": "nonsense"}, [], "allowed: native, triton, reference"),
        ({}, ["--output", __file__], "exists"),
    ],
)
def test_what_cannot_run_is_said_before_training(
    variables: dict[str, str], arguments: list[str], message: str
) -> None:
    variables = {"TRITON_INTERPRET": "0", "MODGRAD_BACKEND": "", **variables}
    result = modgrad("demo", "--device", "cpu", *arguments, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith("modgrad demo: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("modgrad.__main__.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "modgrad demo needs rich and matplotlib: pip install modgrad[demo]"


# the sentence


def accuracy(**changed: dict[str, float]) -> dict[str, dict[str, Spread]]:
    means = {
        PLAIN: {"joint": 0.92, "audio": 0.30, "visual": 0.88},
        "audio alone": {"audio": 0.80},
        "visual alone": {"visual": 0.89},
        **changed,
    }
    return {
        method: {output: Spread(mean, 0.01) for output, mean in row.items()}
        for method, row in means.items()
    }


def test_sentence_of_a_balancer_that_helps() -> None:
    numbers = accuracy(ogm={"joint": 0.95, "audio": 0.40, "visual": 0.82})
    assert sentence(numbers, ["ogm"]) == (
        "Plain joint training neglects the audio: its branch reaches 30.0 % where the same encoder"
        " trained alone reaches 80.0 %; ogm recovers 20 % of that gap and raises the joint accuracy"
        " by 3.0 points, while the visual branch loses 6.0 points."
    )


def test_sentence_of_balancers_that_do_not_help() -> None:
    numbers = accuracy(
        ogm={"joint": 0.93, "audio": 0.31, "visual": 0.88},  # within the spread over seeds
        fixed={"joint": 0.90, "audio": 0.25, "visual": 0.95},
    )
    text = sentence(numbers, ["ogm", "fixed"])
    assert "ogm does not clearly narrow that gap and makes no clear difference to the joint" in text
    assert "fixed widens that gap by 5.0 points and lowers the joint accuracy by 2.0" in text
    assert "recovers" not in text
    assert "raises" not in text


def test_sentence_where_nothing_is_neglected() -> None:
    numbers = accuracy(
        plain={"joint": 0.99, "audio": 0.80, "visual": 0.885},
        ogm={"joint": 0.99, "audio": 0.85, "visual": 0.88},
    )
    text = sentence(numbers, ["ogm"])
    assert text.startswith("Plain joint training neglects neither modality clearly")
    assert "ogm" not in text


def test_sentence_of_one_seed_says_so() -> None:
    numbers = accuracy(ogm={"joint": 0.95, "audio": 0.40, "visual": 0.88})
    single = {
        method: {output: replace(value, std=None) for output, value in row.items()}
        for method, row in numbers.items()
    }
    assert sentence(single, ["ogm"]).endswith("(one seed only: such differences may be chance).")
