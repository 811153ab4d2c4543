"""What signals mean to a process before its event loop takes them, and when that is over."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_at_sigterm() -> None:
    """Make SIGTERM end this process with exit code 0, while it loads and after it has served, and SIGHUP do nothing.

    Without that SIGHUP would end it, and the first process of a container would not even hear SIGTERM. uvicorn shuts
    down gracefully, then raises the signal again for the handler that it found: this one.
    """
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def ignore_from_now_on(loop: asyncio.AbstractEventLoop) -> None:
    """Ignore signals to the end: the loop, as it closes, would have them end the process in the midst of tidying up.

    Args:
        loop: Has had the signals.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    for number in _OURS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _stop(_signal: int, _frame: object) -> None:
    sys.exit(0)
