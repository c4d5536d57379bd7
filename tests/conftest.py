"""Which backends and devices are tested, and memory that is never accidentally right."""

import os
from pathlib import Path

import pytest
import torch
from at_once import VARIANTS
from native.emulator.build import build, find_headers
from native.emulator.emulator import Emulator
from native.formulas import build as build_formulas

from modgrad.backends import BACKENDS, why_not

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))

REQUIRED = [name for name in os.environ.get("MODGRAD_REQUIRE_BACKENDS", "").split(",") if name]
unknown = set(REQUIRED) - set(BACKENDS)
if unknown:
    raise ValueError(f"MODGRAD_REQUIRE_BACKENDS names {sorted(unknown)}, allowed: {list(BACKENDS)}")

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def usable(name: str, device: str) -> None:
    """Skip where a backend cannot run, or fail where it has to."""
    reason = why_not(device)[name]
    # Triton runs on one device at a time: interpreted on the CPU, compiled on a GPU.
    elsewhere = name == "triton" and device == "cpu" and torch.cuda.is_available()
    if reason is not None and name in REQUIRED and not elsewhere:
        pytest.fail(f"required backend {name!r} cannot run on {device}: {reason}")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=list(BACKENDS))
def backend(request, device):
    usable(request.param, device)
    return request.param


@pytest.fixture(scope="session")
def built_emulator(tmp_path_factory):
    include = find_headers()
    if include is None:
        reason = "no CUDA headers in CUDA_HOME, beside the nvcc on PATH or in /usr/local/cuda"
        if os.environ.get("MODGRAD_REQUIRE_NVCC") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return Emulator(build(SOURCE / "csrc", include, tmp_path_factory.mktemp("emulator")))


@pytest.fixture
def emulator(built_emulator):
    """The CUDA sources on the CPU, in a schedule of their own for every test."""
    built_emulator.seed(0)
    return built_emulator


@pytest.fixture
def ops(emulator):
    """The ops of the CUDA sources, as the dispatcher knows them."""
    return emulator.ops


@pytest.fixture(scope="session")
def formulas(tmp_path_factory):
    """The headers of csrc that CPU and GPU share, for Python."""
    return build_formulas(SOURCE, tmp_path_factory.mktemp("native"))


@pytest.fixture(params=VARIANTS, ids=["at once", "in parts"])
def variant(request, monkeypatch):
    monkeypatch.setenv("MODGRAD_COOPERATIVE", request.param)


@pytest.fixture(scope="module")
def one_thread():
    """For modules of small steps: where others have the cores, threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised tensors, those made in C++ too, are full of NaN: an unwritten output shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded(request):
    """Fresh input for every test, and the same in every run of it."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))
