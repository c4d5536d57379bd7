"""Where numbers go from Python to a device, which waits for it: not in a step."""

import ast
from pathlib import Path

import modgrad

PACKAGE = Path(modgrad.__file__).parent
APART = {"bench", "datasets", "demo", "diagnostics", "theory"}
# once a run, once a list of modalities, or once a call of the user
ALLOWED = {
    ("balancers/conditional_learning_speed.py", "_groups"),
    ("balancers/fixed.py", "init"),
    ("balancers/gradient_blending.py", "init"),
    ("memory.py", "__init__"),
    ("meter.py", "_on_device"),
}


def copies(function):
    """Calls of ``x.new_tensor(…)`` and ``torch.tensor(…, device=…)``."""
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, keywords = node.func.attr, {k.arg for k in node.keywords}
        if name == "new_tensor" or (name in ("tensor", "as_tensor") and "device" in keywords):
            yield node


def test_no_number_is_copied_to_the_device_in_a_step():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in APART or place.parts[0] == "triton_kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(copies(node)):
                found.add((place.as_posix(), node.name))
    assert found == ALLOWED
