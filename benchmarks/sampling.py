"""Timing several arms side by side within one process: short blocks in random order, every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 20
"""Calls of one arm at a stretch, before the next arm has its turn."""
WARM_UP = 2
"""Calls before each block that are not timed, so that every arm finds its data in the caches."""
CALIBRATION = 60
"""At most so many calls give the median that a delay is a share of, after as many that are not counted."""

Call = Callable[[NDArray[np.int64]], object]
"""User rows int64 [b] → anything; this is what is timed."""


@dataclass(frozen=True)
class Contestant:
    """An arm, ready to be timed.

    Attributes:
        call: What is timed.
        calls: Timed calls in a round.
        delay: Busy waiting after each call, as a share of the arm's own median.
    """

    call: Call
    calls: int
    delay: float = 0.0


def sample(
    contestants: Mapping[str, Contestant],
    n_users: int,
    users_per_call: int,
    generator: np.random.Generator,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, NDArray[np.float64]]:
    """Time one round of every arm.

    The arms take turns in blocks, in an order drawn for each turn, and all arms of a turn are asked for the same users.
    An arm with fewer calls than the others has its calls spread evenly over the turns.

    Args:
        contestants: Name → arm.
        n_users: User rows are drawn below this.
        users_per_call: User rows that every call gets.
        generator: Draws users and order.
        clock: Nanoseconds.

    Returns:
        Name → seconds, float64 [calls of the arm].
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    delays = {
        name: _calibrate(arm, generator.integers(n_users, size=(2 * CALIBRATION, users_per_call)), clock)
        for name, arm in contestants.items()
        if arm.delay
    }
    turns = -(-max(arm.calls for arm in contestants.values()) // BLOCK)
    for turn in range(turns):
        users = generator.integers(n_users, size=(BLOCK + WARM_UP, users_per_call))
        for name in shuffled(list(contestants), generator):
            arm = contestants[name]
            due = arm.calls * (turn + 1) // turns - len(times[name])
            if due:
                times[name] += _block(arm.call, users[: WARM_UP + due], delays.get(name, 0), clock)
    return {name: np.array(values) for name, values in times.items()}


def _block(call: Call, users: NDArray[np.int64], delay: int, clock: Callable[[], int]) -> list[float]:
    for rows in users[:WARM_UP]:
        call(rows)
    times = []
    for rows in users[WARM_UP:]:
        started = clock()
        call(rows)
        if delay:
            end = clock() + delay
            while clock() < end:
                pass
        times.append((clock() - started) * 1e-9)
    return times


def _calibrate(arm: Contestant, users: NDArray[np.int64], clock: Callable[[], int]) -> int:
    """Return how many nanoseconds an arm must wait, from its own median."""
    count = min(arm.calls, CALIBRATION)
    median = np.median(_block(arm.call, users[: 2 * count], 0, clock)[-count:])
    return max(1, round(float(median) * arm.delay * 1e9))


def shuffled(names: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Return the names in an order drawn at random."""
    return [names[position] for position in generator.permutation(len(names))]


def rotations(names: Sequence[str], generator: np.random.Generator) -> list[list[str]]:
    """Return as many orders as there are names: in each another name comes first, and each name has each place once.

    Where an arm's data lie in memory alone can move its times by 15 %, and what is opened first lies elsewhere than
    what is opened last. Rounds that follow these orders give every arm every place equally often.
    """
    drawn = shuffled(names, generator)
    cycle = [drawn[shift:] + drawn[:shift] for shift in range(len(drawn))]
    return [cycle[position] for position in generator.permutation(len(cycle))]
