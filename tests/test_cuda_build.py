"""What the CUDA kernels compile to, without a GPU: no torch, no spills, 16 bytes an access."""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FILES = sorted((SOURCE / "csrc" / "cuda").glob("*.cu"))

# Four float types, four loads in flight each.
ACCESSES = 16
READS = {
    "balance_kernel",
    "balance_losses_kernel",
    "combine_kernel",
    "cross_entropy_backward_kernel",
    "cross_entropy_kernel",
    "cross_entropy_rows_kernel",
    "group_gram_kernel",
    "group_sq_norms_kernel",
    "modality_scores_kernel",
    "modulate_kernel",
    "scale_backward_kernel",
    "score_rows_kernel",
    "spread_kernel",
}
WRITES = {
    "balance_kernel",
    "balance_losses_kernel",
    "combine_kernel",
    "cross_entropy_backward_kernel",
    "modulate_kernel",
    "scale_backward_kernel",
}

# One kernel a pair of types. Loads and stores of 16 bytes where both are float32 or one of half
# precision: parameter, gradient and states, with a state fewer or more in the second loop. At once
# a kernel measures before: four loads of the gradient in flight, and one of the rest.
UPDATES = {
    "adam_at_once_kernel": (5 + 4 + 5, 3 + 4),
    "modulated_adam_kernel": (4 + 5, 3 + 4),
    "modulated_sgd_kernel": (2 + 3, 1 + 2),
    "sgd_at_once_kernel": (5 + 2 + 3, 1 + 2),
}
WITHOUT_READS = {"modulated_adam_", "modulated_sgd_", "rule_weights", "update_list"}
UPDATE_TYPES = r"_kernelI(Lb[01]E)?(ff|6__halfS\d_|13__nv_bfloat16S\d_)"

# CUDA's sin and cos reduce arguments above 1e5 on the stack; those of GE noise are below 7.
NOISY = ("modulate_kernel<true>", "modulated_adam_kernel<true>", "modulated_sgd_kernel<true>")
STACK = dict.fromkeys(NOISY, 32)


# At 64 registers a thread, 4 blocks of 256 share the 65,536 of a multiprocessor. Fewer blocks where
# 64 spill, and for the 16 float64 sums of two tiles: 104 registers on sm_90, 134 on sm_80. Where a
# rule decides there is one block.
REGISTERS = {
    r"adam_at_once_kernelIf": 80,
    r"balance_losses_kernel": 128,
    r"cross_entropy_backward_kernel": 128,
    r"cross_entropy_kernel": 80,
    r"group_gram_kernelILb1": 136,
    r"modulated_adam_kernelI(Lb1|Lb0Ed)": 80,  # noise, float64
    r"rule_weights_kernel": 128,
}


def kernel(symbol):
    """The name in a mangled symbol, with its first template argument where that is a bool."""
    name, argument = re.search(r"\d([a-z_]+_kernel)(?:I(Lb[01])?)?", symbol).groups()
    return name + {None: "", "Lb0": "<false>", "Lb1": "<true>"}[argument]


def register_limit(symbol):
    limits = (limit for pattern, limit in REGISTERS.items() if re.search(pattern, symbol))
    return next(limits, 64)


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def compiled(request, tmp_path_factory):
    """Device code for all architectures, and what ptxas says about its kernels."""
    nvcc = find_nvcc()
    if nvcc is None:
        reason = "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
        if os.environ.get("MODGRAD_REQUIRE_NVCC") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    target = tmp_path_factory.mktemp("cuda") / f"{request.param.stem}.fatbin"
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v", "-fatbin"]
    command = [nvcc, *flags, *codes, request.param, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target, done.stderr


def test_nothing_spills(compiled):
    _, report = compiled
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\d+)'\n.*\n"
        r" *(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    assert {int(architecture) for _, architecture, *_ in found} == set(ARCHITECTURES)
    spilled = [
        f"{kernel(symbol)} for sm_{architecture}: stack {stack}, stores {stores}, loads {loads}"
        for symbol, architecture, stack, stores, loads in found
        if int(stores) + int(loads) > 0 or int(stack) > STACK.get(kernel(symbol), 0)
    ]
    assert not spilled


def test_registers_leave_room_for_the_blocks(compiled):
    _, report = compiled
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\d+)'\n(?:.*\n){2}.*Used (\d+) registers", report
    )
    assert {int(architecture) for _, architecture, _ in found} == set(ARCHITECTURES)
    crowded = [
        f"{kernel(symbol)} for sm_{architecture}: {registers}"
        for symbol, architecture, registers in found
        if int(registers) > register_limit(symbol)
    ]
    assert not crowded


def test_elements_move_by_16_bytes(compiled):
    triton = find_spec("triton")
    folder = triton and Path(triton.submodule_search_locations[0], "backends", "nvidia", "bin")
    cuobjdump = shutil.which("cuobjdump", path=folder) if folder else None
    if cuobjdump is None:
        pytest.skip("no cuobjdump: it comes with triton")
    target, _ = compiled
    sass = subprocess.run(
        [cuobjdump, "-sass", "-arch", "sm_90", target], capture_output=True, text=True, check=True
    ).stdout
    streaming = updates = 0
    for text in sass.split("Function : ")[1:]:
        name = kernel(text.split()[0])
        plain = name.partition("<")[0]
        wide = defaultdict(int)
        for instruction in re.findall(r"\b(LDG|STG)\.E(?:\.\w+)*\.128\b", text):
            wide[instruction] += 1
        assert plain not in READS or wide["LDG"] >= ACCESSES, f"{name} loads {dict(wide)}"
        assert plain not in WRITES or wide["STG"] >= ACCESSES, f"{name} stores {dict(wide)}"
        streaming += plain in READS
        if plain in UPDATES and re.search(UPDATE_TYPES, text.split()[0]):
            loads, stores = UPDATES[plain]
            assert wide["LDG"] >= loads, f"{name} loads {dict(wide)}"
            assert wide["STG"] >= stores, f"{name} stores {dict(wide)}"
            updates += 1
    # with noise, without, and at once, in short lists and long ones, of three types
    assert updates == (18 if f"{target.stem}kernel" in UPDATES else 0)
    assert streaming > 0 or target.stem in WITHOUT_READS
