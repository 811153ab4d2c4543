"""What calls usually take: never much too little, and no more than what few of them say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.expected import Expected

COUNTS = st.integers(1, 63)


def test_nothing_is_known_of_what_was_never_called() -> None:
    expected = Expected()
    assert (expected.seconds(1), expected.most(1.0)) == (math.inf, 0)


def test_many_are_not_expected_to_take_as_long_as_so_many_alone() -> None:
    expected = Expected()
    expected.learn(1, 100e-6)
    assert expected.seconds(32) == pytest.approx(3200e-6)
    expected.learn(20, 800e-6)
    assert expected.seconds(1) == pytest.approx(100e-6)
    assert expected.seconds(32) == pytest.approx(1280e-6)
    assert expected.most(2e-3) == 50


def test_many_say_nothing_of_few() -> None:
    expected = Expected()
    expected.learn(64, 640e-6)
    assert expected.seconds(1) == math.inf
    expected.learn(1, 100e-6)
    assert expected.seconds(1) == pytest.approx(100e-6)
    assert expected.seconds(64) == pytest.approx(640e-6)


def test_a_slow_call_is_remembered_for_a_while_but_is_not_usual() -> None:
    expected = Expected()
    for seconds in (1e-4, 1e-2, 1e-4):
        expected.learn(1, seconds)
    assert 5e-3 < expected.surprise < 1e-2
    assert expected.seconds(1) < 1e-3
    for _ in range(40):
        expected.learn(1, 1e-4)
    assert expected.seconds(1) == pytest.approx(1e-4, rel=0.05)
    assert expected.surprise < 1e-5


def test_what_is_slow_again_and_again_becomes_usual() -> None:
    expected = Expected()
    expected.learn(1, 1e-4)
    for _ in range(100):
        expected.learn(1, 1e-2)
        assert expected.seconds(1) + expected.surprise > 9e-3
    assert expected.seconds(1) > 9e-3


def test_an_exception_among_large_calls_does_not_stop_them_for_ever() -> None:
    expected = Expected()
    expected.learn(32, 1.0)
    assert expected.most(2e-3) == 0
    expected.learn(1, 1e-4)
    assert expected.most(2e-3) == 20


@given(fixed=st.floats(0, 1e-3), each=st.floats(1e-6, 1e-3), calls=st.lists(COUNTS, min_size=1, max_size=30))
def test_calls_are_never_much_longer_than_expected(fixed: float, each: float, calls: list[int]) -> None:
    """Calls of a size may differ fourfold in how many share what a call costs anyway."""
    expected = Expected()
    for count in calls:
        expected.learn(count, fixed + each * count)
    for count in range(1, 64):
        assert expected.seconds(count) >= 0.99 * (fixed / 4 + each * count)


@given(learnt=st.lists(st.tuples(COUNTS, st.floats(0, 1e-2)), max_size=30), seconds=st.floats(1e-6, 1e-2))
def test_the_most_is_the_most(learnt: list[tuple[int, float]], seconds: float) -> None:
    expected = Expected()
    for count, took in learnt:
        expected.learn(count, took)
    most = expected.most(seconds)
    if most < 2**20:
        assert not most or expected.seconds(most) <= seconds * (1 + 1e-9)
        assert not [n for n in range(most + 1, most + 200) if expected.seconds(n) < seconds * (1 - 1e-9)]
