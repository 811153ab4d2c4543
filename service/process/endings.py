"""How processes end, and what is said of it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from training.common.errors import DvibError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED = (DvibError, OSError, MemoryError)
"""What may go wrong with bundles and processes, and is told in one line."""


@contextmanager
def ending_with(lease: int) -> Iterator[None]:
    """End this process as soon as nobody holds the lease, whatever it is doing in the block.

    Loading may take minutes, in which no line of Python looks at the lease; the system does, and its signal ends the
    process.
    """
    flags = fcntl.fcntl(lease, fcntl.F_GETFL)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lease, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lease, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        if select.select([lease], [], [], 0)[0]:
            os._exit(0)
        yield
    finally:
        fcntl.fcntl(lease, fcntl.F_SETFL, flags)


def how_it_ended(code: int) -> str:
    """Say how a process ended.

    Args:
        code: As ``subprocess`` gives it, negative for a signal.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ", as the system does where memory is short" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def sentence(error: BaseException) -> str:
    """Return an expected error as the one line that a command line would show."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error or 'allocation failed'}"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    return " ".join(str(error).split())
