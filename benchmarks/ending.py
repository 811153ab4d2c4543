"""Ending in order: what this program has started and written goes away with it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def _exit(_signal: int, _frame: object) -> None:
    sys.exit(128 + signal.SIGTERM)


@contextmanager
def orderly_at_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the blocks that we are in, as Ctrl-C does, instead of ending this process at once.

    Only for the main thread.
    """
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
