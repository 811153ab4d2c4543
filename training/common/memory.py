"""How much memory processes hold. Imports nothing heavy: a probe asks before it loads its libraries."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Literal

Field = Literal["VmRSS", "VmHWM"]


def status_bytes(field: Field, process: int | Literal["self"] = "self") -> int | None:
    """Return what Linux says of a process, in bytes; None where it says nothing.

    Args:
        field: ``VmRSS``, what is resident now, or ``VmHWM``, what was at most.
        process: Its number.
    """
    status = Path(f"/proc/{process}/status")
    if status.is_file():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def peak_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes.

    As Linux tells it, where it does: ``ru_maxrss`` would count what the process was forked from, too.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the memory that this process holds now, in bytes; without Linux' help, what it held at most."""
    return status_bytes("VmRSS") or peak_bytes()
