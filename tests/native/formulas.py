"""Compiles bindings.cpp: headers of csrc, for Python."""

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11


def build(source: Path, target: Path) -> ModuleType:
    """The module, compiled in ``target`` from the checkout ``source``."""
    name = "modgrad_native_formulas"
    library = target / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    subprocess.run(
        [
            os.environ.get("CXX", "c++"),
            *("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
            *(f"-I{path}" for path in includes),
            str(source / "tests" / "native" / "bindings.cpp"),
            *("-o", str(library)),
        ],
        check=True,
    )
    spec = importlib.util.spec_from_file_location(name, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
