"""The processes of a service and the memory that each holds. Linux only."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.common.errors import DvibError
from training.common.memory import status_bytes

_GONE = (FileNotFoundError, ProcessLookupError)


class Memory(NamedTuple):
    """What one process, or several together, hold.

    Attributes:
        resident: RSS in bytes; of several processes, what they share counts for each.
        proportional: PSS in bytes: what n processes share counts for each by the n-th part.
    """

    resident: int
    proportional: int


NOTHING = Memory(0, 0)


def processes(root: int) -> dict[int, list[int]]:
    """Return a process and all below it: number → numbers of its children. Empty where it has ended."""
    if sys.platform != "linux":
        raise DvibError("processes and their memory are read as Linux shows them; run this there")
    children: defaultdict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            state, parent, *_ = path.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except _GONE:
            continue
        if state != "Z":
            children[int(parent)].append(int(path.parent.name))
    found: dict[int, list[int]] = {}
    waiting = [root] if Path(f"/proc/{root}").exists() else []
    while waiting:
        process = waiting.pop()
        found[process] = sorted(children[process])
        waiting += found[process]
    return found


def leaves(root: int) -> list[int]:
    """Return the processes without children: those that answer requests."""
    return sorted(process for process, children in processes(root).items() if not children)


def memory(process: int) -> Memory | None:
    """Return what a process holds, exactly; None where it has ended. Walks its page table: not for every moment."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8").splitlines()
    except _GONE:
        return None
    fields = dict(line.split(":", 1) for line in lines[1:])
    if "Pss" not in fields:
        return None
    return Memory(*(int(fields[name].split()[0]) * 1024 for name in ("Rss", "Pss")))


def total(members: list[Memory]) -> Memory:
    """Return the sum over processes."""
    return Memory(sum(one.resident for one in members), sum(one.proportional for one in members))


def tree_memory(root: int) -> dict[int, Memory]:
    """Return what every process of a tree holds."""
    found = {process: memory(process) for process in processes(root)}
    return {process: held for process, held in found.items() if held is not None}


@dataclass
class MemoryLog:
    """Resident memory of a tree over time, as cheaply as it can be read.

    Attributes:
        root: The tree's first process.
        times: Seconds of the monotonic clock.
        readings: At each time: process → resident bytes.
    """

    root: int
    times: list[float] = field(default_factory=list)
    readings: list[dict[int, int]] = field(default_factory=list)

    def read(self) -> None:
        """Read once more."""
        found = {process: status_bytes("VmRSS", process) for process in _still_there(self.root)}
        self.times.append(time.monotonic())
        self.readings.append({process: held for process, held in found.items() if held is not None})

    @property
    def seconds(self) -> NDArray[np.float64]:
        """When it was read, seconds from the first time, float64 [n]."""
        return np.array(self.times) - (self.times[0] if self.times else 0.0)

    @property
    def bytes(self) -> NDArray[np.float64]:
        """The whole tree's resident bytes, float64 [n]."""
        return np.array([sum(reading.values()) for reading in self.readings], dtype=np.float64)

    @property
    def stable(self) -> bool:
        """Whether the same processes were there all the time."""
        return len({frozenset(reading) for reading in self.readings}) <= 1

    def document(self) -> dict[str, list[float] | list[int]]:
        """Return the log as JSON values: seconds, and bytes of each process; 0 where it was not there."""
        everyone = sorted({process for reading in self.readings for process in reading})
        return {"seconds": self.seconds.round(2).tolist()} | {
            f"process_{number}": [reading.get(process, 0) for reading in self.readings]
            for number, process in enumerate(everyone)
        }


def _still_there(root: int) -> list[int]:
    return [process for process in processes(root) if Path(f"/proc/{process}/status").exists()]
