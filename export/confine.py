"""A bound on memory for work on a stranger's graph: an allocation too many is an error, not the end of the process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHARE = 0.9
_DATA_PAGES = 5


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take nine tenths of the memory that is available now, and no more, while the block runs.

    A graph of harmless operators can still ask for any amount, and a system that runs out of memory ends whatever
    process it likes. Beyond the bound an allocation fails, which every library here reports. Where the system does not
    say what is available (no Linux), nothing is bounded.
    """
    available, taken = _available(), _taken()
    if available is None or taken is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = taken + int(_SHARE * available)
    bounds = [limit, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _available() -> int | None:
    """Return the memory that this process may still take: the machine's, or its container's where that is less."""
    free = _free_on_machine()
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if free is None or not limit or not used or not limit[0].isdigit():
        return free
    return min(free, max(0, int(limit[0]) - int(used[0])))


def _free_on_machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return None


def _taken() -> int | None:
    fields = " ".join(_lines("/proc/self/statm")).split()
    return int(fields[_DATA_PAGES]) * resource.getpagesize() if fields else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("ascii").splitlines()
    except OSError:
        return []
