from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from benchmarks.sampling import BLOCK, Call, Level, sample
from benchmarks.statistics import ratio_of_quantiles

ARMS = ("baseline", "dvib")


class Machine:
    """Arms that take a drawn time on a clock of their own, and a list of what was called."""

    def __init__(self, delay: float) -> None:
        self.nanoseconds = 0
        self.delay = delay
        self.draw = np.random.default_rng(0)
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.opened: list[str] = []

    def clock(self) -> int:
        return self.nanoseconds

    def open(self, name: str) -> Call:
        self.opened.append(name)

        def call(users: NDArray[np.int64]) -> None:
            self.calls.append((name, tuple(users.tolist())))
            factor = 1 + self.delay if name == "dvib" else 1.0
            self.nanoseconds += int(100_000 * factor * np.exp(0.1 * self.draw.standard_normal()))

        return call

    def level(self, calls: int, users: int = 1) -> Level:
        return Level("test", "test", ARMS, self.open, users, calls)


def interval_contains_one(delay: float) -> bool:
    machine = Machine(delay)
    times = sample(machine.level(100), 50, 20, np.random.default_rng(1), clock=machine.clock)
    return ratio_of_quantiles(times["baseline"], times["dvib"], np.random.default_rng(2)).contains(1.0)


def test_an_injected_delay_is_seen_and_equal_arms_are_not_told_apart() -> None:
    assert not interval_contains_one(0.05)
    assert interval_contains_one(0.0)


def test_samples_are_seconds_and_keep_their_shape() -> None:
    machine = Machine(0.0)
    times = sample(machine.level(7), 50, 3, np.random.default_rng(0), clock=machine.clock)
    assert {name: values.shape for name, values in times.items()} == dict.fromkeys(ARMS, (3, 7))
    assert 8e-5 < np.median(times["baseline"]) < 1.2e-4


def test_each_turn_asks_every_arm_for_the_same_users_and_warms_it_up_first() -> None:
    machine = Machine(0.0)
    calls = BLOCK + 3
    sample(machine.level(calls, users=4), 1000, 2, np.random.default_rng(0), clock=machine.clock)
    by_arm = {name: [users for arm, users in machine.calls if arm == name] for name in ARMS}
    assert by_arm["baseline"] == by_arm["dvib"]
    assert len(by_arm["dvib"]) == 2 * (calls + 2)  # two blocks in a round, one untimed call each
    assert all(len(users) == 4 for users in by_arm["dvib"])


def test_arms_take_turns_in_short_blocks_and_in_both_orders() -> None:
    machine = Machine(0.0)
    sample(machine.level(4 * BLOCK), 50, 10, np.random.default_rng(0), clock=machine.clock)
    runs = [(name, len(list(group))) for name, group in groupby(name for name, _ in machine.calls)]
    assert max(length for _, length in runs) <= 2 * (BLOCK + 1)
    turns = [machine.calls[start][0] for start in range(0, len(machine.calls), 2 * (BLOCK + 1))]
    assert 10 < turns.count("baseline") < 30


def test_every_round_opens_the_arms_anew_in_a_drawn_order() -> None:
    machine = Machine(0.0)
    rounds: list[int] = []
    sample(
        machine.level(2),
        50,
        40,
        np.random.default_rng(0),
        clock=machine.clock,
        on_round=lambda: rounds.append(len(rounds)),
    )
    assert len(rounds) == 40
    assert machine.opened.count("baseline") == machine.opened.count("dvib") == 40
    assert 8 < machine.opened[::2].count("baseline") < 32
