from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.sampling import BLOCK, WARM_UP, Call, Contestant, rotations, sample
from benchmarks.statistics import ratio_of_quantiles


class Machine:
    """Arms that take a drawn time on a clock of their own, and a list of what was called."""

    def __init__(self) -> None:
        self.nanoseconds = 0
        self.draw = np.random.default_rng(0)
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def clock(self) -> int:
        self.nanoseconds += 10
        return self.nanoseconds

    def arm(self, name: str, factor: float = 1.0) -> Call:
        def call(users: NDArray[np.int64]) -> None:
            self.calls.append((name, tuple(users.tolist())))
            self.nanoseconds += int(100_000 * factor * np.exp(0.1 * self.draw.standard_normal()))

        return call

    def play(
        self, *, calls: int, users: int = 1, delay: float = 0.0, factor: float = 1.0
    ) -> dict[str, NDArray[np.float64]]:
        arms = {
            "baseline": Contestant(self.arm("baseline"), calls),
            "dvib": Contestant(self.arm("dvib", factor), calls, delay),
        }
        return sample(arms, 1000, users, np.random.default_rng(1), clock=self.clock)


def ratio_over_rounds(**settings: float) -> tuple[float, float, float]:
    machine = Machine()
    rounds = [machine.play(calls=100, **settings) for _ in range(20)]  # type: ignore[arg-type]
    baseline, dvib = (np.stack([times[name] for times in rounds]) for name in ("baseline", "dvib"))
    ratio = ratio_of_quantiles(baseline, dvib, np.random.default_rng(2))
    return ratio.low, ratio.value, ratio.high


@pytest.mark.parametrize("settings", [{"delay": 0.05}, {"factor": 1.05}])
def test_a_delay_is_seen_for_what_it_is(settings: dict[str, float]) -> None:
    low, value, high = ratio_over_rounds(**settings)
    assert 1.03 < low < value < high < 1.07


def test_equal_arms_are_not_told_apart() -> None:
    low, _, high = ratio_over_rounds()
    assert 0.98 < low < 1 < high < 1.02


def test_samples_are_seconds() -> None:
    times = Machine().play(calls=7)
    assert {name: values.shape for name, values in times.items()} == {"baseline": (7,), "dvib": (7,)}
    assert 8e-5 < np.median(times["baseline"]) < 1.2e-4


def test_each_turn_asks_every_arm_for_the_same_users_and_warms_it_up_first() -> None:
    machine = Machine()
    machine.play(calls=BLOCK + 3, users=4)
    by_arm = {name: [users for arm, users in machine.calls if arm == name] for name in ("baseline", "dvib")}
    assert by_arm["baseline"] == by_arm["dvib"]
    assert len(by_arm["dvib"]) == BLOCK + 3 + 2 * WARM_UP
    assert len(set(by_arm["dvib"])) == len(by_arm["dvib"])
    assert all(len(users) == 4 for users in by_arm["dvib"])


def test_arms_take_turns_in_short_blocks_and_in_both_orders() -> None:
    machine = Machine()
    machine.play(calls=40 * BLOCK)
    block = BLOCK + WARM_UP
    runs = [len(list(group)) for _, group in groupby(name for name, _ in machine.calls)]
    assert max(runs) <= 2 * block
    turns = [machine.calls[start][0] for start in range(0, len(machine.calls), 2 * block)]
    assert 10 < turns.count("baseline") < 30


def test_an_arm_with_few_calls_has_them_spread_over_the_round() -> None:
    machine = Machine()
    arms = {
        "fast": Contestant(machine.arm("fast"), 10 * BLOCK),
        "slow": Contestant(machine.arm("slow"), 5),
    }
    times = sample(arms, 50, 1, np.random.default_rng(0), clock=machine.clock)
    assert {name: len(values) for name, values in times.items()} == {"fast": 10 * BLOCK, "slow": 5}
    runs = [name for name, _ in groupby(name for name, _ in machine.calls)]
    assert runs.count("slow") == 5


def test_orders_of_opening_give_every_arm_every_place_once() -> None:
    names = ["a", "b", "c", "d", "e"]
    orders = rotations(names, np.random.default_rng(0))
    for place in range(len(names)):
        assert sorted(order[place] for order in orders) == names
    assert orders != rotations(names, np.random.default_rng(1))
