"""Calls every op by Triton's own launchers for an sm_90 that is not there, and prints what happens.

The tensors are on the CPU. Kernels are compiled and their arguments bound as for a GPU; what would
start one counts it instead.
"""

import json
from collections import Counter

import calls
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from modgrad.backends import triton as backend


class NoDevice:
    """What the launchers ask a driver for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def main() -> None:
    launched, compiled = Counter(), Counter()
    compile_kernel = JITFunction._do_compile

    def count_compiled(self, *args, **options):
        compiled[self.fn.__name__] += 1
        return compile_kernel(self, *args, **options)

    driver.set_active(NoDevice())
    JITFunction._do_compile = count_compiled
    CompiledKernel._init_handles = lambda self: None
    CompiledKernel.run = property(lambda self: lambda *a, **o: launched.update([self.name]))
    CompiledKernel.launch_metadata = lambda self, *a, **o: None
    backend.unusable = lambda device: None

    found = {}
    for name, call in calls.calls("cpu", "triton").items():
        call.run(calls.clones(call.inputs))
        launched.clear()
        compiled.clear()
        call.run(calls.clones(call.inputs))
        found[name] = {"launches": launched.total(), "compiled": dict(compiled)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
