"""ONNX Runtime starts no thread as it is imported, whoever imports it: none would be in a forked worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USERS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("training", "export", "service", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
    if re.search(r"^\s*(import|from) .*\bonnxruntime\b", path.read_text("utf-8"), re.MULTILINE)
]
PROGRAM = """
import importlib, os, sys
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        print(name, len(os.listdir("/proc/self/task")), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_whoever_imports_it_has_one_thread() -> None:
    assert {"export.runtime", "export.parity", "service.retrieval.session", "benchmarks.stages"} <= set(USERS)
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    # Theirs are started by NumPy and FAISS, where nobody says otherwise.
    variables |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    line = [sys.executable, "-c", PROGRAM, *USERS]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True, env=variables, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{name} 1" for name in USERS], done.stderr


def test_it_does_what_the_user_has_set() -> None:
    program = "import os, export.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for value in ("0", "1"):
        line = [sys.executable, "-c", program]
        variables = os.environ | {"ORT_DISABLE_TELEMETRY": value}
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=variables, cwd=ROOT)
        assert done.stdout.strip() == value
