"""What other processes use: CPU time to the nanosecond, resident memory, and what is left for us. Linux only."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.load.tree import memory, processes, total
from training.common.errors import DvibError
from training.common.memory import status_bytes


class Meter:
    """Reads what a process has used.

    ``/proc/PID/stat`` counts hundredths of a second; the CPU clock of POSIX that is read here counts all threads of the
    process, those that have ended too, as exactly as the scheduler does.

    Args:
        pid: The process.

    Raises:
        DvibError: This is not Linux, or there is no such process.
    """

    def __init__(self, pid: int) -> None:
        if sys.platform != "linux":
            raise DvibError("the load benchmark reads CPU time and memory of servers as Linux shows them; run it there")
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
        if error:
            raise DvibError(f"no CPU clock of process {pid}: {os.strerror(error)}")
        self._clock = clock.value
        self.pid = pid

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used so far, of user and system."""
        return time.clock_gettime(self._clock)

    def resident_bytes(self) -> int:
        """Return the resident memory."""
        held = status_bytes("VmRSS", self.pid)
        if held is None:
            raise DvibError(f"process {self.pid} shows no memory; it has ended")
        return held


class TreeMeter:
    """Reads what a process and all that are below it now have used: of a service, those that answer are below it.

    Args:
        pid: The first process.

    Raises:
        DvibError: See ``Meter``.
    """

    def __init__(self, pid: int) -> None:
        self._meters = [Meter(one) for one in processes(pid)]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that they have used so far."""
        return sum(meter.cpu_seconds() for meter in self._meters)

    def resident_bytes(self) -> int:
        """Return the memory that they hold: of one process what is resident, of several their PSS.

        What is shared counts once.
        """
        if len(self._meters) == 1:
            return self._meters[0].resident_bytes()
        held = [memory(meter.pid) for meter in self._meters]
        return total([one for one in held if one is not None]).proportional


class Others:
    """Counts what everybody else does from now on: figures of a busy machine are worth less.

    Args:
        ours: Processes that belong to us.

    Raises:
        DvibError: See ``Meter``.
    """

    def __init__(self, ours: Iterable[int]) -> None:
        self._ours = [Meter(pid) for pid in ours]
        self._since, self._before = time.perf_counter(), self._seconds()

    def _seconds(self) -> float:
        return _machine_seconds() - sum(meter.cpu_seconds() for meter in self._ours)

    def cores(self) -> float:
        """Return how many cores others have kept busy on average, what a virtual machine's host took included."""
        return max(0.0, (self._seconds() - self._before) / (time.perf_counter() - self._since))


def _machine_seconds() -> float:
    """Return the CPU seconds that all processes have used and that the host has stolen, since the machine started."""
    fields = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, fields[:8])
    return (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")
