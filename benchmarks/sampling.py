"""Timing several arms side by side: short blocks in random order, every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.statistics import Samples

BLOCK = 10
"""Calls of one arm at a stretch, before the next arm has its turn."""

Call = Callable[[NDArray[np.int64]], object]
"""User rows int64 [b] → anything; this is what is timed."""


@dataclass(frozen=True)
class Level:
    """One depth at which the arms are compared.

    Attributes:
        name: For the document.
        description: For people.
        arms: Names of the arms.
        open: Arm → its call, ready to be timed. Called anew for every round.
        users_per_call: User rows that every call gets.
        calls: Timed calls of every arm in a round.
    """

    name: str
    description: str
    arms: Sequence[str]
    open: Callable[[str], Call]
    users_per_call: int
    calls: int


def sample(
    level: Level,
    n_users: int,
    rounds: int,
    generator: np.random.Generator,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Samples]:
    """Time every arm of a level.

    Where an arm's data lie in memory alone can move its times by 15 %. So every round opens the arms anew, in an order
    drawn for it, and two equal arms get the better place equally often. Within a round they take turns in blocks, in an
    order drawn for each turn, and all arms of a turn are asked for the same users. Each block begins with one call that
    is not timed, so that every arm finds its data in the caches.

    Args:
        level: The arms.
        n_users: User rows are drawn below this.
        rounds: The unit of the statistics.
        generator: Draws users and order.
        clock: Nanoseconds.
        on_round: Called after each round.

    Returns:
        Arm → seconds, float64 [rounds, calls].
    """
    times = {name: np.empty((rounds, level.calls), dtype=np.float64) for name in level.arms}
    calls: dict[str, Call] = {}
    for number in range(rounds):
        calls.clear()
        for name in shuffled(level.arms, generator):
            calls[name] = level.open(name)
        for first in range(0, level.calls, BLOCK):
            length = min(BLOCK, level.calls - first)
            users = generator.integers(n_users, size=(length + 1, level.users_per_call))
            for name in shuffled(level.arms, generator):
                call, row = calls[name], times[name][number]
                call(users[length])
                for offset in range(length):
                    started = clock()
                    call(users[offset])
                    row[first + offset] = (clock() - started) * 1e-9
        if on_round is not None:
            on_round()
    return times


def shuffled(names: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Return the names in an order drawn at random."""
    return [names[position] for position in generator.permutation(len(names))]
