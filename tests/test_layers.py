"""Which room may import which: arrows point down only."""

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))

# A room is named by its dotted prefix; the longest that matches counts.
ALLOWED = {
    "modgrad.triton_kernels": {"modgrad.triton_kernels"},
    "modgrad.rules": set(),
    "modgrad.backends.protocol": set(),
    "modgrad.backends.layout": set(),
    "modgrad.backends.philox": set(),
    "modgrad.backends.fake": {"modgrad.backends.protocol"},
    "modgrad.backends.elements": {"modgrad.backends.philox"},
    "modgrad.backends.reference_updates": {
        "modgrad.backends.elements",
        "modgrad.backends.layout",
        "modgrad.rules",
    },
    "modgrad.backends.reference": {
        "modgrad.backends.elements",
        "modgrad.backends.fake",
        "modgrad.backends.layout",
        "modgrad.backends.reference_updates",
        "modgrad.rules",
    },
    "modgrad.backends.retained": {"modgrad.backends.protocol"},
    "modgrad.backends.native": {
        "modgrad.backends.fake",
        "modgrad.backends.retained",
        "modgrad._C",
        "modgrad._C_cuda",
    },
    "modgrad.backends.triton": {
        "modgrad.backends.fake",
        "modgrad.backends.protocol",
        "modgrad.triton_kernels",
    },
    "modgrad.backends": {"modgrad.backends"},
    "modgrad.checks": set(),
    "modgrad.table": set(),
    "modgrad.figures": set(),
    "modgrad.balance": {
        "modgrad.backends",
        "modgrad.calls",
        "modgrad.checks",
        "modgrad.ops",
        "modgrad.per_loss",
        "modgrad.rules",
    },
    "modgrad.calls": {"modgrad.backends"},
    "modgrad.per_loss": {"modgrad.backends.layout", "modgrad.calls", "modgrad.checks"},
    "modgrad.ops": {
        "modgrad.backends",
        "modgrad.calls",
        "modgrad.checks",
        "modgrad.per_loss",
    },
    "modgrad.update_lists": {"modgrad.backends.layout", "modgrad.checks"},
    "modgrad.update_options": {"modgrad.calls", "modgrad.checks", "modgrad.rules"},
    "modgrad.updates": {
        "modgrad.backends",
        "modgrad.calls",
        "modgrad.checks",
        "modgrad.update_lists",
        "modgrad.update_options",
    },
    "modgrad.autograd": {"modgrad.ops", "modgrad.checks"},
    "modgrad.cross_entropy": {"modgrad.backends", "modgrad.checks", "modgrad.rules"},
    "modgrad.losses": {
        "modgrad.autograd",
        "modgrad.checks",
        "modgrad.cross_entropy",
        "modgrad.late_fusion",
        "modgrad.rules",
    },
    "modgrad.balancers": {"modgrad.balancers", "modgrad.rules"},
    "modgrad.modalities": {"modgrad.table"},
    "modgrad.late_fusion": set(),
    "modgrad.prototypes": set(),
    "modgrad.mmtm": set(),
    "modgrad.responses": {"modgrad.late_fusion"},
    "modgrad.distributed": set(),
    "modgrad.observation": {"modgrad.checks", "modgrad.late_fusion", "modgrad.ops"},
    "modgrad.seen": {
        "modgrad.balancers",
        "modgrad.distributed",
        "modgrad.memory",
        "modgrad.observation",
    },
    "modgrad.gradients": {"modgrad.distributed"},
    "modgrad.records": {"modgrad.balancers", "modgrad.rules"},
    "modgrad.meter": {"modgrad.balancers", "modgrad.ops"},
    "modgrad.held": {"modgrad.modalities"},
    "modgrad.memory": {"modgrad.balancers"},
    "modgrad.decider": {
        "modgrad.balance",
        "modgrad.balancers",
        "modgrad.memory",
        "modgrad.records",
        "modgrad.rules",
    },
    "modgrad.boundary": {
        "modgrad.autograd",
        "modgrad.balancers",
        "modgrad.observation",
        "modgrad.records",
    },
    "modgrad.several_losses": {
        "modgrad.balancers",
        "modgrad.decider",
        "modgrad.distributed",
        "modgrad.gradients",
        "modgrad.held",
        "modgrad.meter",
        "modgrad.observation",
        "modgrad.ops",
        "modgrad.records",
    },
    "modgrad.one_loss": {
        "modgrad.balance",
        "modgrad.balancers",
        "modgrad.decider",
        "modgrad.distributed",
        "modgrad.held",
        "modgrad.meter",
        "modgrad.ops",
        "modgrad.records",
    },
    "modgrad.modulator": {
        "modgrad.backends",
        "modgrad.balancers",
        "modgrad.boundary",
        "modgrad.checks",
        "modgrad.decider",
        "modgrad.held",
        "modgrad.memory",
        "modgrad.meter",
        "modgrad.modalities",
        "modgrad.observation",
        "modgrad.one_loss",
        "modgrad.records",
        "modgrad.seen",
        "modgrad.several_losses",
    },
    "modgrad.update_parts": {
        "modgrad.backends.retained",
        "modgrad.checks",
        "modgrad.update_lists",
        "modgrad.update_options",
        "modgrad.updates",
    },
    "modgrad.fused": {
        "modgrad.modulator",
        "modgrad.records",
        "modgrad.update_options",
        "modgrad.update_parts",
    },
    "modgrad.optimizer": {
        "modgrad.fused",
        "modgrad.update_options",
        "modgrad.update_parts",
        "modgrad.balancers",
        "modgrad.modalities",
        "modgrad.modulator",
        "modgrad.observation",
        "modgrad.records",
    },
    "modgrad.amp": {"modgrad.ops", "modgrad.optimizer"},
    "modgrad.snapshot": set(),
    "modgrad.blending": {
        "modgrad.balancers",
        "modgrad.distributed",
        "modgrad.gradients",
        "modgrad.observation",
        "modgrad.optimizer",
        "modgrad.snapshot",
    },
    "modgrad.theory": {"modgrad.balancers", "modgrad.theory"},
    "modgrad.datasets": {"modgrad.datasets"},
    "modgrad.diagnostics": {
        "modgrad.diagnostics",
        "modgrad.balancers",
        "modgrad.distributed",
        "modgrad.figures",
        "modgrad.modulator",
        "modgrad.optimizer",
        "modgrad.records",
        "modgrad.responses",
        "modgrad.table",
    },
    # the top: the package's face, and the programs that are its users
    "modgrad": {"modgrad"},
}


def modules():
    for path in (ROOT / "modgrad").rglob("*.py"):
        yield path, ".".join(("modgrad", *path.relative_to(ROOT / "modgrad").with_suffix("").parts))
    for path in (ROOT / "triton_kernels").rglob("*.py"):
        yield path, f"modgrad.triton_kernels.{path.stem}"


FILES = dict(modules())


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(name, prefixes):
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def room(module):
    return max((r for r in ALLOWED if under(module, [r])), key=len)


def test_the_tree_is_there():
    assert len(FILES) > 20, f"no sources below {ROOT}; set MODGRAD_SOURCE"


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_imports_point_down(path):
    module = FILES[path].removesuffix(".__init__")
    own = {name for name in imports(path) if under(name, ["modgrad"])}
    stray = {name for name in own if not under(name, ALLOWED[room(module)])}
    assert not stray, f"{module} (room {room(module)}) may not import {sorted(stray)}"


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_nothing_imports_the_top(path):
    """``modgrad`` itself, the programs, the command line: used by nobody below."""
    module = FILES[path].removesuffix(".__init__")
    if room(module) == "modgrad":
        return
    top = {"modgrad.bench", "modgrad.demo", "modgrad.doctor", "modgrad.__main__"}
    assert not {name for name in imports(path) if under(name, top)}


def test_an_upward_import_would_be_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from modgrad import modulator\n")
    assert not under(next(imports(path)), ALLOWED["modgrad.ops"])


def test_balancers_import_torch_alone():
    for path, module in FILES.items():
        if under(module, ["modgrad.balancers"]):
            foreign = {n.split(".")[0] for n in imports(path)} - {"modgrad", "torch"}
            standard = {"math", "dataclasses", "typing", "collections", "functools"}
            assert foreign <= standard, f"{module} imports {sorted(foreign - standard)}"


@pytest.mark.parametrize("name", ["csrc", "triton_kernels"])
def test_every_op_has_its_file_in_every_backend(name):
    from modgrad.backends.protocol import SCHEMAS

    patterns = ["cpu/{}.cpp", "cuda/{}.cu", "cuda/{}.cuh"] if name == "csrc" else ["{}.py"]
    for op in SCHEMAS:
        for pattern in patterns:
            assert (ROOT / name / pattern.format(op)).exists(), pattern.format(op)
