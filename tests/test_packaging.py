"""What is in the sdist and the wheel, and what a build does on a machine that lacks something."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(os.environ.get("MODGRAD_SOURCE", Path(__file__).parents[1]))
DIST = os.environ.get("MODGRAD_DIST")
BUILDABLE = pytest.mark.skipif(
    find_spec("setuptools") is None or find_spec("wheel") is None,
    reason="setuptools and wheel are not installed here",
)


def build(tmp_path, mode, **environment):
    """A wheel from a copy of the sources; the process."""
    copy = tmp_path / "source"
    copied = ["setup.py", "pyproject.toml", "README.md", "LICENSE"]
    copied += ["csrc", "modgrad", "triton_kernels"]
    copy.mkdir()
    subprocess.run(["cp", "-r", *(str(SOURCE / name) for name in copied), str(copy)], check=True)
    for stale in copy.rglob("*.so"):
        stale.unlink()
    command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(tmp_path / "dist")]
    return subprocess.run(
        command,
        cwd=copy,
        env={**os.environ, "MODGRAD_BUILD": mode, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def names(archive):
    with zipfile.ZipFile(archive) as wheel:
        return wheel.namelist()


@BUILDABLE
def test_none_builds_a_pure_python_wheel_that_works(tmp_path):
    done = build(tmp_path, "none")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    inside = names(wheel)
    assert not [n for n in inside if n.endswith(".so")]
    assert "modgrad/triton_kernels/table.py" in inside
    assert "modgrad/datasets/av_digits.npz" in inside
    top = {n.split("/")[0] for n in inside}
    assert top == {"modgrad", next(t for t in top if t.endswith(".dist-info"))}
    program = (
        "import sys; keep = lambda f: 'Editable' not in getattr(f, '__name__', '');"
        "sys.meta_path[:] = filter(keep, sys.meta_path);"  # an editable install would lend its _C
        "import modgrad, torch; print(modgrad.__file__);"
        "print(modgrad.backends.why_not('cpu')['native']);"
        "print(modgrad.group_sq_norms([torch.ones(3)], [0], 1).item())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(wheel), "MODGRAD_BACKEND": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    where, reason, value = ran.stdout.splitlines()
    assert str(wheel) in where
    assert "modgrad._C did not import" in reason
    assert value == "3.0"


@BUILDABLE
@pytest.mark.parametrize(
    ("mode", "environment", "match"),
    [
        ("cpu", {"CXX": "no-such-compiler"}, "MODGRAD_BUILD=cpu needs C++ compiler"),
        ("fast", {}, "MODGRAD_BUILD is 'fast', allowed: auto, none, cpu, cuda"),
    ],
)
def test_what_is_asked_for_by_name_is_built_or_an_error(tmp_path, mode, environment, match):
    done = build(tmp_path, mode, **environment)
    assert done.returncode != 0
    assert match in done.stderr


@BUILDABLE
def test_auto_says_what_is_missing_and_goes_on(tmp_path):
    done = build(tmp_path, "auto", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "modgrad: no C++ compiler: pure-Python build" in done.stderr


@pytest.mark.skipif(DIST is None, reason="MODGRAD_DIST names no folder of built distributions")
def test_one_wheel_for_many_versions():
    (wheel,) = Path(DIST).glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    inside = names(wheel)
    assert "modgrad/_C.abi3.so" in inside
    assert not [n for n in inside if n.startswith(("tests/", "benchmarks/", "triton_kernels/"))]


@pytest.mark.skipif(DIST is None, reason="MODGRAD_DIST names no folder of built distributions")
def test_sdist_holds_every_source():
    (sdist,) = Path(DIST).glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", sdist], capture_output=True, text=True, check=True)
    inside = {name.split("/", 1)[1] for name in listed.stdout.split() if "/" in name}
    for folder in ("csrc", "modgrad", "triton_kernels", "tests", "benchmarks", "tools"):
        for path in (SOURCE / folder).rglob("*"):
            if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh", ".npz", ".pyi"}:
                assert str(path.relative_to(SOURCE)) in inside


def test_importing_modgrad_is_light():
    """Neither Triton, a plotting library nor a GPU is touched by ``import modgrad``."""
    program = (
        "import sys, torch; before = set(sys.modules); import modgrad;"
        "heavy = {'triton', 'matplotlib', 'rich', 'sklearn'} & (set(sys.modules) - before);"
        "assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_folder_is_no_top_level_package():
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import triton_kernels"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "this folder is modgrad.triton_kernels, not a top-level package" in done.stderr
