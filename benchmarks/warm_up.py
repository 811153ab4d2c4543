"""Asking before the time is taken, so that a process a second old answers like one that has served for hours."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.sampling import Call

SECONDS = 0.3


def warm_up(
    call: Call,
    n_users: int,
    users_per_call: int,
    generator: np.random.Generator,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Ask for users in random order, each once, until all were asked for or the time is up.

    What fills with use, as an engine's names of items, is then as full as it soon is in a service.

    Args:
        call: What is timed afterwards.
        n_users: User rows are below this.
        users_per_call: User rows that every call gets.
        generator: Draws the order.
        clock: Seconds.

    Returns:
        The number of calls.
    """
    users = generator.permutation(n_users)
    end = clock() + SECONDS
    calls = 0
    # Every call gets as many: the last repeats its own users.
    for start in range(0, n_users, users_per_call):
        call(np.resize(users[start : start + users_per_call], users_per_call))
        calls += 1
        if clock() >= end:
            break
    return calls
