"""The cases of ``modgrad bench`` under pytest-benchmark, which compares saved runs.

    pytest benchmarks --benchmark-autosave
    pytest benchmarks --benchmark-compare --benchmark-compare-fail=median:20%

Timed in blocks, one provider after the other: for ratios, ``modgrad bench`` is the better judge.
"""

from functools import lru_cache
from importlib.util import find_spec

import pytest
import torch

from modgrad.bench.machine import flush
from modgrad.bench.suite import entries

INSTALLED = find_spec("pytest_benchmark") is not None
pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="pytest-benchmark is not installed: pip install modgrad[bench]"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ENTRIES = {entry.label: entry for entry in entries(DEVICE, quick=True)}


@lru_cache(maxsize=1)  # tests of a case are neighbours; lists of gradients are large
def checked(label):
    case = ENTRIES[label].build()
    case.check()
    return case


@lru_cache
def emptied_caches():
    return flush(DEVICE)


def pytest_generate_tests(metafunc):
    """Every case is built once to know its providers."""
    labels = ENTRIES if INSTALLED else ()
    pairs = [(label, name) for label in labels for name in ENTRIES[label].build().providers]
    metafunc.parametrize(("label", "provider"), pairs)


def test_provider(label, provider, benchmark):
    case = checked(label)
    function = case.providers[provider]
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None

    def run():
        function()
        wait()

    benchmark.group = label
    benchmark.extra_info.update(case.config)
    setup = emptied_caches() if case.cold else wait
    rounds = 30 if case.kind == "op" else 5
    benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=1)
