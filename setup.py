"""Builds modgrad: C++ module ``modgrad._C``; CUDA module ``modgrad._C_cuda`` where nvcc is found.

``MODGRAD_BUILD`` decides: ``auto`` (what the machine has), ``none`` (pure Python), ``cpu``
(C++ or an error), ``cuda`` (C++ and CUDA or an error).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

MODES = ("auto", "none", "cpu", "cuda")
MODE = os.environ.get("MODGRAD_BUILD", "auto")
if MODE not in MODES:
    sys.exit(f"modgrad: MODGRAD_BUILD is {MODE!r}, allowed: {', '.join(MODES)}")

# Stable ABI of torch 2.10: one binary for every later torch (docs/building.md).
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# No product and sum are fused but where the source says so: two kernels that share code, one launch
# and its parts, give the same bits whatever the compiler makes of either.
NVCC = ["-O3", "-std=c++17", "-fmad=false", "--threads=2", "-compress-mode=size"]
ARCHITECTURES = {"80": "8.0", "86": "8.6", "89": "8.9", "90": "9.0", "100": "10.0", "120": "12.0"}


def missing(what: str, consequence: str, required: bool) -> None:
    """Say in one line what is missing; go on only where nobody asked for it by name."""
    if required:
        sys.exit(f"modgrad: MODGRAD_BUILD={MODE} needs {what}")
    print(f"modgrad: no {what}: {consequence}", file=sys.stderr)


def find_cuda_home() -> Path | None:
    nvcc = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME"),
        nvcc and Path(nvcc).resolve().parents[1],
        "/usr/local/cuda",
    ]
    homes = (Path(c) for c in candidates if c)
    # an nvcc on PATH may be a script that stands apart from its toolkit
    parts = ("bin/nvcc", "include/cuda_runtime_api.h")
    return next((home for home in homes if all((home / p).exists() for p in parts)), None)


def default_architectures(cuda_home: Path) -> str:
    """Every architecture of ours that this nvcc knows, and PTX for the newest."""
    nvcc = cuda_home / "bin" / "nvcc"
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True
    ).stdout
    names = [name for code, name in ARCHITECTURES.items() if f"compute_{code}\n" in known]
    return ";".join(names) + "+PTX"


def extensions() -> dict[str, object]:
    """The keyword arguments of ``setup`` that describe what is compiled."""
    if MODE == "none":
        return {}
    try:
        from torch.utils import cpp_extension
    except ModuleNotFoundError:
        missing(
            "torch in the build environment (use --no-build-isolation)",
            "pure-Python build",
            MODE != "auto",
        )
        return {}
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        missing("C++ compiler", "pure-Python build", MODE != "auto")
        return {}

    # no errno: a loop with a square root that could set it is not vectorised
    cxx = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", TORCH_TARGET]
    headers = sorted(str(p) for p in Path("csrc").rglob("*.[hc]*") if p.suffix in {".h", ".cuh"})
    modules = [
        cpp_extension.CppExtension(
            "modgrad._C",
            sorted(str(p) for p in Path("csrc/cpu").glob("*.cpp")),
            depends=headers,
            py_limited_api=True,
            extra_compile_args={"cxx": cxx},
        )
    ]
    cuda_home = find_cuda_home() if MODE != "cpu" else None
    if cuda_home is not None:
        # A CPU-only torch leaves CUDA_HOME unset and refuses CUDAExtension; this works.
        cpp_extension.CUDA_HOME = str(cuda_home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(cuda_home))
        modules.append(
            cpp_extension.CppExtension(
                "modgrad._C_cuda",
                sorted(str(p) for p in Path("csrc/cuda").glob("*.c[pu]*") if p.suffix != ".cuh"),
                include_dirs=[str(cuda_home / "include")],
                library_dirs=[str(cuda_home / "lib64")],
                # static: the wheel must not depend on which CUDA runtime torch carries
                libraries=["cudart_static", "rt", "pthread", "dl"],
                # --as-needed would drop libtorch, through which libtorch_cuda is found at load time
                extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
                depends=headers,
                py_limited_api=True,
                extra_compile_args={
                    "cxx": [*cxx, "-DUSE_CUDA"],
                    "nvcc": NVCC,
                },
            )
        )
    elif MODE != "cpu":
        missing(
            "nvcc (looked at CUDA_HOME, PATH, /usr/local/cuda)", "no CUDA module", MODE == "cuda"
        )
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=[*find_packages(include=["modgrad", "modgrad.*"]), "modgrad.triton_kernels"],
    package_dir={"modgrad.triton_kernels": "triton_kernels"},
    **extensions(),
)
