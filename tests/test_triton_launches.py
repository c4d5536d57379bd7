"""What Triton's own launchers do, without a GPU: the interpreter has others."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

LAUNCHES = {
    "group_sq_norms": 2,
    "group_gram": 2,
    "combine_": 1,
    "modulate_": 1,
    "modulate_ with noise": 3,
    "scale_backward": 1,
    "modality_scores": 2,
    "modality_cross_entropy": 3,  # with its backward
    "balanced_cross_entropy": 3,
    "rule_weights": 1,
    "balance_": 3,
    "balance_ of losses": 4,
    "modulated_sgd_": 1,
    "modulated_adamw_": 2,
    "modulated_sgd_ by norms": 3,
    "modulated_adamw_ by norms": 4,
}


@pytest.fixture(scope="module")
def second_calls():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("triton_launches.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_launches_of_every_op(second_calls):
    assert {name: found["launches"] for name, found in second_calls.items()} == LAUNCHES


def test_nothing_is_compiled_twice(second_calls):
    assert not {name: found for name, found in second_calls.items() if found["compiled"]}


@pytest.mark.parametrize("values", [[1, 2**40], np.arange(6).reshape(2, 3)], ids=["list", "numpy"])
def test_tables_are_pinned_on_their_way(monkeypatch, values):
    """No driver here: what torch checks before it asks for one is checked."""
    pytest.importorskip("triton")
    pinned = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self)
    upload = import_module("modgrad.triton_kernels.table").upload
    found = upload(values, torch.device("cuda"))
    assert len(pinned) == 1
    assert found.dtype == torch.int64
    assert np.array_equal(found, values)
