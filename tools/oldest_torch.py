"""Compile every C++ file against the headers of the oldest torch that pyproject.toml promises.

``PYTHONPATH=tests python tools/oldest_torch.py build/oldest`` fetches that release there (its
headers are what is kept) and checks the syntax and types of csrc/, as a build against it would. It
is not installed.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from native.emulator.build import find_headers

ROOT = Path(__file__).parents[1]


def oldest() -> str:
    """The requirement for the oldest release, of the form ``torch==2.10.0``."""
    found = re.search(r'"torch>=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())
    if found is None:
        sys.exit("pyproject.toml has no dependency of the form torch>=X.Y")
    return f"torch=={found[1]}.0"


def fetch_headers(requirement: str, folder: Path) -> Path:
    """Unpack ``torch/include`` of the release into ``folder``, if it is not there yet."""
    headers = folder / "torch" / "include"
    if headers.exists():
        return headers
    download = ["download", "--quiet", "--no-deps", "--dest", folder / "wheel", requirement]
    subprocess.run([sys.executable, "-m", "pip", *download], check=True)
    with zipfile.ZipFile(next((folder / "wheel").glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("torch/include/")]
        wheel.extractall(folder, names)
    shutil.rmtree(folder / "wheel")
    return headers


def errors(source: Path, includes: list[Path]) -> str:
    """What the compiler has against a file; empty where it is fine."""
    setup = (ROOT / "setup.py").read_text()
    target = re.search(r'"(-DTORCH_TARGET_VERSION=\w+)"', setup)
    assert target is not None, "setup.py defines no TORCH_TARGET_VERSION"
    flags = ["-std=c++17", "-fsyntax-only", "-DUSE_CUDA", target[1]]
    command = [os.environ.get("CXX", "c++"), *flags, *(f"-I{path}" for path in includes), source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode != 0 else ""


def main(folder: Path) -> None:
    requirement = oldest()
    includes = [fetch_headers(requirement, folder), Path(sysconfig.get_path("include"))]
    cuda = find_headers()
    rooms = ["cpu", "cuda"] if cuda is not None else ["cpu"]
    includes += [cuda] if cuda is not None else []
    sources = sorted(path for room in rooms for path in (ROOT / "csrc" / room).glob("*.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda source: errors(source, includes), sources))
    print("".join(found), end="", file=sys.stderr)
    failed = sum(map(bool, found))
    print(f"{len(sources) - failed} of {len(sources)} files compile against {requirement}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
