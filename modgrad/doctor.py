"""What a bug report needs to say about an installation."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from modgrad import backends
from modgrad.table import render

VARIABLES = ("MODGRAD_BACKEND", "MODGRAD_COOPERATIVE", "TRITON_INTERPRET")
EXTENSIONS = ("modgrad._C", "modgrad._C_cuda")


def report() -> str:
    """Versions, devices, variables and backends, as plain text."""
    facts = versions() | _machine() | _environment()
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts.items()]
    return "\n\n".join(["\n".join(lines), *map(_backends, _devices())])


def versions() -> dict[str, str]:
    return {
        "modgrad": version("modgrad"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none",
        "Triton": _installed("triton"),
        "numpy": _installed("numpy"),
        "platform": platform.platform(),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}, {os.cpu_count()} CPUs"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "CPU": f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} torch threads",
        "GPU": "; ".join(gpus) or "none that torch can use",
        "NVIDIA driver": driver(),
    }


def driver() -> str:
    """The version of NVIDIA's, or why it is not known."""
    if shutil.which("nvidia-smi") is None:
        return "none (no nvidia-smi)"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).split("\n")
    return next((line.strip() for line in lines if line.strip()), "nvidia-smi says nothing")


def _environment() -> dict[str, str]:
    variables = {name: os.environ.get(name) or "not set" for name in VARIABLES}
    found = {name: find_spec(name) for name in EXTENSIONS}
    return variables | {
        name: "missing" if spec is None else spec.origin or "present"
        for name, spec in found.items()
    }


def _devices() -> list[torch.device]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return [torch.device("cpu")] + ([torch.device(accelerator.type)] if accelerator else [])


def backend_name(device: torch.device, name: str | None = None) -> str:
    """The name of the backend that ``modgrad.backends.select`` gives; raises as it does."""
    chosen = backends.select(device, name)
    return next(name for name, backend in backends.BACKENDS.items() if backend is chosen)


def _backends(device: torch.device) -> str:
    """Which backend runs on a device, and why each other one does not."""
    chosen = None
    try:
        chosen = backend_name(device)
        verdict = f"{chosen} runs"
    except (ValueError, backends.BackendUnavailableError) as error:
        verdict = f"nothing runs with MODGRAD_BACKEND={os.environ['MODGRAD_BACKEND']}: {error}"
    rows: list[list[str | list[str]]] = [
        [
            name,
            "runs" if name == chosen else (reason or "usable, if asked for by name").splitlines(),
        ]
        for name, reason in backends.why_not(device).items()
    ]
    return f"{device.type}: {verdict}\n\n{render(['backend', f'on {device.type}'], rows)}"
