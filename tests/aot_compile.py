"""Compiles every Triton kernel for one compute capability, without a GPU; prints JSON.

A process of its own: under TRITON_INTERPRET=1 ``triton.jit`` gives nothing that can be compiled.
"""

import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from modgrad import triton_kernels
from modgrad.triton_kernels.table import DTYPES

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WIDE_ACCESS = r"{}\.global[.:\w]*\.(v4\.b32|v2\.b64|v8\.b32|v4\.b64)"

# The types of each kernel's arguments, in order; DTYPE, CHUNK and BLOCK follow by name. What stands
# after a slash is a variant of the kernel, with CONSTANTS of its own.
KERNELS = {
    "_group_sq_norms_kernel": ["*i64", "*i64", "*fp64"],
    "_group_sums_kernel": ["*fp64", "*i64", "*fp64"],
    "_modulate_kernel": ["*i64", "*i64", "*fp32"],
    "_modulate_spread_kernel": ["*i64", "*i64", "*fp32", "*fp64", "*fp64"],
    "_modulate_deviation_kernel": ["*fp64", "*fp64", "*i64", "*i64", "*fp64"],
    "_modulate_noise_kernel": ["*i64", "*i64", "*fp32", "*fp32", "*fp64", "*i64"],
    "_modality_scores_kernel": ["*i64", "*i64", "*i64", "*fp64"],
    "_modality_means_kernel": ["*fp64", "*i64", "*fp32"],
    "_scale_backward_kernel": ["*i64", "*i64", "*i64", "*fp32"],
    "_group_gram_kernel": ["*i64", "*i64", "*fp64", "i32", "i32", "i32"],
    "_group_gram_sums_kernel": ["*fp64", "*i64", "*fp64", "i32", "i32"],
    "_combine_kernel": ["*i64", "*i64", "*fp32", "i32"],
    "_rule_weights_kernel": ["*fp64", *["*fp32"] * 5, "i32", "i32"],
    "_rule_weights_kernel/scores": ["*fp32", *["*fp32"] * 5, "i32", "i32"],
    "_rule_of_norms_kernel": [*("*fp64", "*i64", "*fp32", "*fp32", "*fp64", "*fp32"), "i32"],
    "_cross_entropy_rows_kernel": ["*i64", "*i64", "*i64", "*fp64", *["*fp64"] * 4, "i32"],
    "_cross_entropy_rows_kernel/soft": ["*i64", "*i64", "*fp32", "*fp32", *["*fp64"] * 4, "i32"],
    "_cross_entropy_means_kernel": [
        *("*fp64", "*fp64", "*i64", "*fp32", "*fp32", "*fp32", "*fp64", "*fp32"),
        *("i32", "i32", "i32", "i32", "i32"),
    ],
    "_cross_entropy_backward_kernel": [
        *("*i64", "*i64", "*i64", "*i64", "*fp64"),
        *("*fp64", "*fp64", "*fp32", "*fp64", "i32", "i32"),
    ],
    "_cross_entropy_backward_kernel/soft": [
        *("*i64", "*i64", "*i64", "*fp32", "*fp32"),
        *("*fp64", "*fp64", "*fp32", "*fp32", "i32", "i32"),
    ],
    "_update_norms_kernel": ["*fp64", "*i64", "*fp32", "*fp32", "*fp64", "i32"],
    "_modulated_sgd_kernel": [
        *("*i64", "*i64", "*fp32", "*fp32", "*fp32", "*fp32", "*fp32"),
        *("*fp64", "*i64", "*fp64", "i32", "i32"),
    ],
    "_adam_tensors_kernel": [
        *("*i64", "*fp32", "*fp32", "*fp32", "*fp32", "*fp32", "*fp64", "i32", "*fp64"),
    ],
    "_modulated_adam_kernel": ["*i64", "*i64", "*fp64", "*fp32", "*i64", "*fp64", "i32", "i32"],
}
# Constants that are not the module's: the most that the kernels do, then the least. STATE: a dtype,
# or None for that of the parameter.
_PLAIN = {"SOFT": False, "WEIGHTED": False, "SMOOTHING": 0.0, "SCALED": False}
_EVERYTHING = {"SOFT": True, "WEIGHTED": True, "SMOOTHING": 0.1, "SCALED": True}
_MOST = {"NOISE": True, "MEASURED": True}
_LEAST = {"NOISE": False, "MEASURED": False}
_SGD = {"HAS_MOMENTUM": True, "IS_FIRST_STEP": False, "NESTEROV": True}
_EQUAL = {"RULE": "equal_norms", "FIRST": 0.5, "SECOND": 1e3}
_OGM = {"RULE": "ogm", "FIRST": 0.3, "SECOND": 0.0}
VARIANTS = {
    "_rule_weights_kernel": [
        {**_EQUAL, "BLOCK": 8},
        {"RULE": "mmpareto", "FIRST": 1.0, "SECOND": 0.0, "BLOCK": 32},
        {"RULE": "pcgrad", "FIRST": 0.0, "SECOND": 0.0, "BLOCK": 8},
        {"RULE": "pcgrad", "FIRST": 0.0, "SECOND": 0.0, "BLOCK": 32},
        {"RULE": "gradnorm", "FIRST": 1.5, "SECOND": 0.025, "BLOCK": 32},
    ],
    "_rule_weights_kernel/scores": [{**_OGM, "BLOCK": block} for block in (4, 16)],
    "_rule_of_norms_kernel": [
        {**_EQUAL, "IN_UPDATE": in_update, "ROWS": rows, "BLOCK": 4096 // rows}
        for in_update in (True, False)
        for rows in (4, 16)
    ],
    "_modulated_sgd_kernel": [
        {**_SGD, **_MOST, "STATE": None},
        {**_SGD, **_LEAST, "STATE": tl.float32},
        {**_SGD, **_LEAST, "STATE": None},
    ],
    "_cross_entropy_rows_kernel": [_PLAIN],
    "_cross_entropy_rows_kernel/soft": [_EVERYTHING],
    "_cross_entropy_means_kernel": [
        {**_PLAIN, "WEIGHTED": True, **rule, "ROWS": rows, "BLOCK": 2048 // rows}
        for rule in (_OGM, {"RULE": None, "FIRST": 0.0, "SECOND": 0.0})
        for rows in (2, 16)
    ],
    "_cross_entropy_backward_kernel": [_PLAIN],
    "_cross_entropy_backward_kernel/soft": [_EVERYTHING],
    "_adam_tensors_kernel": [{"STEPS": 6, "NOISE": True}],
    "_modulated_adam_kernel": [
        {**_MOST, "AMSGRAD": True, "STATE": None},
        {**_LEAST, "AMSGRAD": False, "STATE": tl.float32},
        {**_LEAST, "AMSGRAD": False, "STATE": None},
    ],
}
# The constant with the launch options, where it is not the module's OPTIONS.
OPTIONS = {
    "_modulated_sgd_kernel": "UPDATE_OPTIONS",
    "_adam_tensors_kernel": "TENSOR_OPTIONS",
    "_modulated_adam_kernel": "UPDATE_OPTIONS",
    "_modulate_noise_kernel": "NOISE_OPTIONS",
    "_group_gram_kernel": "TWO_CHUNK_OPTIONS",
    "_combine_kernel": "TWO_CHUNK_OPTIONS",
    "_rule_weights_kernel": "ROW_OPTIONS",
    "_rule_of_norms_kernel": "TILE_OPTIONS",
    "_cross_entropy_means_kernel": "TILE_OPTIONS",
    "_modality_scores_kernel": "ROW_OPTIONS",
    "_modality_means_kernel": "ROW_OPTIONS",
    "_cross_entropy_rows_kernel": "ROW_OPTIONS",
    "_cross_entropy_backward_kernel": "ROW_OPTIONS",
}


def kernels() -> dict[str, JITFunction]:
    """The kernels of the package: its jit functions with a private name; the others are helpers."""
    found = {}
    for info in pkgutil.iter_modules(triton_kernels.__path__):
        module = import_module(f"modgrad.triton_kernels.{info.name}")
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and name.startswith("_"):
                found[name] = value
    return found


def compile_kernel(
    function: JITFunction, types: list[str], dtype: object, variant: dict, capability: int
) -> dict:
    names = list(inspect.signature(function.fn).parameters)
    module = vars(import_module(function.fn.__module__))  # the constants it launches with
    constants = {**module, "DTYPE": dtype, **variant}
    if "STATE" in variant:
        constants["STATE"] = variant["STATE"] or dtype
    source = ASTSource(
        fn=function,
        signature=dict(zip(names, types + ["constexpr"] * len(names), strict=False)),
        constexprs={(i,): constants[n] for i, n in enumerate(names[len(types) :], len(types))},
        attrs={(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t[0] == "*"},
    )
    target = GPUTarget("cuda", capability, 32)
    options = module[OPTIONS.get(function.fn.__name__, "OPTIONS")]
    compiled = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    return {
        **{key.lower(): int(n) for key, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)},
        "loads": len(re.findall(WIDE_ACCESS.format("ld"), compiled.asm["ptx"])),
        "stores": len(re.findall(WIDE_ACCESS.format("st"), compiled.asm["ptx"])),
    }


def main(capability: int) -> dict[str, dict]:
    found = kernels()
    listed = {kernel.partition("/")[0] for kernel in KERNELS}
    if found.keys() != listed:
        sys.exit(f"kernels without a row in KERNELS, or the reverse: {found.keys() ^ listed}")
    report = {}
    for kernel in KERNELS:
        function = found[kernel.partition("/")[0]]
        depends = "DTYPE" in inspect.signature(function.fn).parameters
        for dtype in DTYPES.values() if depends else [None]:
            variants = VARIANTS.get(kernel, [{}])
            for i, variant in enumerate(variants):
                row = compile_kernel(function, KERNELS[kernel], dtype, variant, capability)
                which = [str(dtype)] * depends + [str(i)] * (len(variants) > 1)
                report[f"{kernel}[{' '.join(which)}]" if which else kernel] = row
    return report


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
