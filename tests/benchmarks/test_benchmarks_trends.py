from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.production.trends import slope, tail_ratio

SECONDS = np.arange(600.0)


def sticky(generator: np.random.Generator, kept: float = 0.9) -> NDArray[np.float64]:
    """Noise of which every reading keeps most of the one before it."""
    noise = generator.standard_normal(len(SECONDS))
    for place in range(1, len(noise)):
        noise[place] += kept * noise[place - 1]
    return noise


def test_a_slope_is_that_of_least_squares() -> None:
    generator = np.random.default_rng(0)
    for times in (SECONDS, np.cumsum(generator.exponential(1.0, 80))):
        values = 200e6 + 3e3 * times + 1e5 * generator.standard_normal(len(times))
        found = slope(times, values, generator)
        assert found.value == pytest.approx(np.polyfit(times, values, 1)[0], rel=1e-6)
        assert found.low <= found.value <= found.high
        assert found.low < 3e3 < found.high
        assert found.times(3600).document() == pytest.approx({name: 3600 * v for name, v in vars(found).items()})


def test_what_stands_still_has_no_slope() -> None:
    found = slope(SECONDS, np.full(600, 2e8), np.random.default_rng(0))
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_a_step_in_the_middle_is_growth_and_one_back_is_not() -> None:
    up = np.where(SECONDS < 300, 1e8, 1.2e8)
    assert slope(SECONDS, up, np.random.default_rng(0)).low > 0
    back = np.where((SECONDS > 250) & (SECONDS < 350), 1.2e8, 1e8)
    found = slope(SECONDS, back, np.random.default_rng(0))
    assert found.low < 0 < found.high


def test_neighbours_that_are_alike_make_the_interval_wide() -> None:
    """Of 90 % intervals of flat but sticky memory most hold 0; from independent readings it would be under half."""
    held = 0
    for seed in range(50):
        generator = np.random.default_rng(seed)
        found = slope(SECONDS, sticky(generator), generator)
        held += found.low <= 0 <= found.high
    assert 36 <= held <= 49


def test_too_few_readings_are_refused() -> None:
    with pytest.raises(ValueError, match="8 readings or more, got 7"):
        slope(SECONDS[:7], SECONDS[:7], np.random.default_rng(0))


def stretch(scale: float, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.sort(generator.uniform(0, 60, 6000)), scale * generator.exponential(0.01, 6000)


def test_tails_are_compared() -> None:
    generator = np.random.default_rng(0)
    calm, loaded = stretch(1.0, generator), stretch(3.0, generator)
    ratio = tail_ratio(calm, loaded, generator)
    assert ratio.value == pytest.approx(np.quantile(loaded[1], 0.99) / np.quantile(calm[1], 0.99))
    assert ratio.contains(3.0)
    assert 0.2 < ratio.high - ratio.low < 1.5


def test_one_bad_second_says_little_about_a_tail() -> None:
    """All slow replies in one second: with or without that second, the tail is another."""
    generator = np.random.default_rng(0)
    begun = np.sort(generator.uniform(0, 60, 6000))
    latencies = np.where(np.floor(begun) == 7, 1.0, 0.01)
    ratio = tail_ratio((begun, np.full(6000, 0.01)), (begun, latencies), generator)
    assert ratio.value == pytest.approx(100)
    assert (ratio.low, ratio.high) == pytest.approx((1, 100))


def test_a_tail_of_nothing_is_refused() -> None:
    nothing = np.empty(0)
    with pytest.raises(ValueError, match="replies in either stretch"):
        tail_ratio((nothing, nothing), (SECONDS, SECONDS), np.random.default_rng(0))
