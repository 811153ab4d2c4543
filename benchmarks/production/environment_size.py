"""How large the environment of the service is, and that torch is not in it: installed anew, and weighed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.production.verdict import Bar, Verdict
from training.common.errors import DvibError

MOST = 350e6
"""The bar: bytes of all files."""
GROUPS = "service,cpu"
FORBIDDEN = ("torch", "torch-geometric", "triton")
SOURCE = ("pyproject.toml", "README.md", "training", "export", "service", "benchmarks")
"""What a build takes."""
_INSTALLER = ("pip", "setuptools", "wheel")
_SHOWN = 12
_LIST = """
import importlib.metadata as metadata, json, os
found = {}
for one in metadata.distributions():
    places = [str(one.locate_file(path)) for path in one.files or ()]
    found[one.metadata["Name"].lower().replace("_", "-")] = sum(os.path.getsize(p) for p in places if os.path.isfile(p))
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Run:
    """What was installed.

    Attributes:
        groups: Of optional dependencies.
        distributions: Name → bytes of its files.
        total: Bytes of all files of the environment, what Python compiled and the installer among them.
        compiled: Bytes of what Python compiled.
    """

    groups: str
    distributions: dict[str, int]
    total: int
    compiled: int


def measure(source: Path, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Make a virtual environment, install the service into it from the package index, and weigh the files.

    Args:
        source: The project's folder, with ``pyproject.toml`` and ``constraints.txt``.
        on_step: Told what begins.

    Raises:
        DvibError: This is not the project's folder, or something cannot be installed.
    """
    constraints = source / "constraints.txt"
    for path in (source / "pyproject.toml", constraints):
        if not path.is_file():
            raise DvibError(f"{path} is not there; name the project's folder with --source")
    with tempfile.TemporaryDirectory(prefix="dvib-environment-") as folder:
        place = Path(folder) / "venv"
        on_step("making the environment")
        # The base interpreter, not one of an environment: symbolic links to it weigh nothing.
        _run([_base_interpreter(), "-m", "venv", str(place)])
        python = place / "bin" / "python"
        on_step("installing")
        wanted = f"{copied(source, Path(folder) / 'source')}[{GROUPS}]"
        _run([str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints.absolute()), wanted])
        on_step("weighing")
        return weigh(place, python)


def copied(source: Path, target: Path) -> Path:
    """Copy what is built: a build leaves folders behind, and takes what an earlier one has left for its own."""
    target.mkdir()
    for name in SOURCE:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target


def weigh(place: Path, python: Path) -> Run:
    """Weigh an environment.

    Args:
        place: Its folder.
        python: Its interpreter.
    """
    distributions = json.loads(_run([str(python), "-I", "-c", _LIST]))
    sizes: defaultdict[bool, int] = defaultdict(int)
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sizes[path.suffix == ".pyc"] += path.stat().st_size
    return Run(GROUPS, distributions, sizes[False] + sizes[True], sizes[True])


def _base_interpreter() -> str:
    return getattr(sys, "_base_executable", sys.executable)


def _run(command: list[str]) -> str:
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise DvibError(f"{' '.join(command[1:4])} failed: {said[-1] if said else f'code {done.returncode}'}")
    return done.stdout


def judge(run: Run) -> Verdict:
    """Say what the run says."""
    faults = [f"{name} is installed" for name in FORBIDDEN if name in run.distributions]
    return Verdict([Bar("size", "files of the environment", run.total / 1e6, MOST / 1e6, "MB")], faults)


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    largest = sorted(run.distributions.items(), key=lambda entry: -entry[1])
    for name, size in largest[:_SHOWN]:
        yield f"{name:<28}{size / 1e6:>8.1f} MB"
    rest = sum(size for _, size in largest[_SHOWN:])
    yield f"{f'{max(len(largest) - _SHOWN, 0)} others':<28}{rest / 1e6:>8.1f} MB"
    installer = sum(run.distributions.get(name, 0) for name in _INSTALLER)
    parts = f"compiled by Python {run.compiled / 1e6:.1f} MB, pip {installer / 1e6:.1f} MB"
    yield f"in all {run.total / 1e6:.1f} MB, of which {parts}"
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values."""
    return {**asdict(run), "verdict": verdict.document()}
