"""What a figure was measured on: hardware, versions, thread settings. Imports none of the packages it names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "dvib",
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "faiss-cpu",
    "faiss-gpu",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
)
_THREAD_VARIABLES = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def describe_environment() -> dict[str, Any]:
    """Return the machine as JSON values; ``None`` stands for what is not installed, not set or not known."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "thread_variables": {name: os.environ.get(name) for name in _THREAD_VARIABLES},
    }


def summary(environment: dict[str, Any]) -> str:
    """Return the machine in one line for people."""
    installed = (f"{name} {version}" for name, version in environment["versions"].items() if version is not None)
    load = environment["load_average_1min"]
    return (
        f"{environment['cpu'] or 'unknown CPU'}, {environment['usable_cores']} of {environment['cores']} cores, "
        f"load {'unknown' if load is None else f'{load:.1f}'}; Python {environment['python']}, {', '.join(installed)}"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text("utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
