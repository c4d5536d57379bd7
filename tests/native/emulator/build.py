"""Compiles csrc/cuda for the CPU: the sources after a few replacements, and the emulator."""

import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent

# Files, pattern, replacement. Each must be found: sources that moved on need another replacement.
REPLACEMENTS = [
    (
        "*.cu",
        r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?), (\w+), 0, stream>>>\((.*?)\);",
        r"emulator::launch(\2, \3, [&] { \1(\4); });",
    ),
    # one argument for all threads; fibers would copy 32 KB each
    ("*.cu", r"const __grid_constant__ (\w+<\w+>) (\w+)", r"const \1& \2"),
    (
        "elements.cuh",
        r"\*(reinterpret_cast<const uint4\*>\(aligned\))",
        r"*emulator::aligned_to<16>(\1)",
    ),
    (
        "elements.cuh",
        r"asm volatile\(\"st\.global\.v4.*?\);",
        "*emulator::aligned_to<16>(reinterpret_cast<uint4*>(aligned)) = raw;",
    ),
    # few blocks, so that short lists take the loops over chunks, rows and modalities
    ("tensor_list.cuh", r"(kMaxBlocks) = \d+", r"\1 = 7"),
    (
        "update.cuh",
        r"\*(reinterpret_cast<const uint2\*>\(from\))",
        r"*emulator::aligned_to<8>(\1)",
    ),
    (
        "update.cuh",
        r"asm volatile\(\"st\.global\.v2.*?\);",
        "*emulator::aligned_to<8>(reinterpret_cast<uint2*>(to)) = raw;",
    ),
    ("*.cu*", r"#include <cooperative_groups\.h>", ""),
    (
        "*.cu*",
        r"cooperative_groups::this_grid\(\)\.sync\(\);",
        "emulator::sync_grid(__LINE__);",
    ),
    # tests choose how many blocks are resident
    ("cooperative.cuh", r"if \(!is_new\) return found->second;", ""),
    ("arguments.h", r"is_cuda\(\)", "is_cpu()"),
    ("*bindings.cpp", r"const DeviceGuard guard\(device\);", ""),
    ("*bindings.cpp", r"\(modgrad_native, CUDA, m\)", "(modgrad_emulated, CPU, m)"),
]

FLAGS = [
    *("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden"),
    "-ffp-contract=off",  # a multiply-add is fused where the source says so
    "-fno-strict-aliasing",  # CUDA allows to read any type as uint4
    "-U_FORTIFY_SOURCE",  # it takes a longjmp to another stack for a bug
    *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"),
]


def find_headers() -> Path | None:
    """The toolkit's headers, found as setup.py finds them: an nvcc on PATH may be a script."""
    nvcc = shutil.which("nvcc")
    homes = [
        os.environ.get("CUDA_HOME"),
        nvcc and Path(nvcc).resolve().parents[1],
        "/usr/local/cuda",
    ]
    folders = [Path(home, "include") for home in homes if home]
    return next((folder for folder in folders if (folder / "cuda_bf16.h").exists()), None)


def write_sources(csrc: Path, target: Path) -> None:
    """Copy ``csrc`` with the replacements done."""
    texts = {path: path.read_text() for path in [*csrc.glob("*.h"), *csrc.glob("cuda/*")]}
    for files, pattern, replacement in REPLACEMENTS:
        found = 0
        for path in [path for path in texts if path.match(files)]:
            texts[path], count = re.subn(pattern, replacement, texts[path], flags=re.DOTALL)
            found += count
        assert found > 0, f"{pattern} is not in {files} any more"
    (target / "cuda").mkdir(parents=True)
    for path, text in texts.items():
        assert "<<<" not in text, f"{path.name} has a launch that is not replaced"
        (target / path.relative_to(csrc)).write_text(text)


def run(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(csrc: Path, cuda_include: Path, target: Path) -> Path:
    """A library in ``target`` that registers CUDA kernels as CPU kernels of modgrad_emulated."""
    write_sources(csrc, target / "csrc")
    compiler, torch_home = os.environ.get("CXX", "c++"), Path(torch.__file__).parent
    includes = [torch_home / "include", cuda_include, sysconfig.get_path("include")]

    def compile_one(source: Path) -> Path:
        language = ["-x", "c++", "-include", HERE / "emulator.h"] if source.suffix == ".cu" else []
        output = target / f"{source.stem}.o"
        run(compiler, *FLAGS, *(f"-I{i}" for i in includes), *language, "-c", source, "-o", output)
        return output

    sources = [*target.glob("csrc/cuda/*.cu"), *target.glob("csrc/cuda/*.cpp"), *HERE.glob("*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    library = target / "libmodgrad_emulated.so"
    # -Bsymbolic: a torch with CUDA has functions of the same names as cuda_torch.cpp
    flags = ["-shared", "-Wl,-Bsymbolic", f"-L{torch_home / 'lib'}"]
    run(compiler, *flags, *objects, "-ltorch", "-ltorch_cpu", "-lc10", "-o", library)
    return library
