from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import Quantiles, Ratio, Samples, interquartile_mean, ratio_of_quantiles


def arms(seed: int, ratio: float, *, shared: float, private: float) -> tuple[Samples, Samples]:
    """Two arms of 20 rounds × 10 calls: what a round does to both, what it does to one of them, what a call adds."""
    draw = np.random.default_rng(seed)
    both = shared * draw.standard_normal((20, 1))
    times = [
        np.exp(both + private * draw.standard_normal((20, 1)) + 0.05 * draw.standard_normal((20, 10))) for _ in "ab"
    ]
    return 1e-4 * times[0], 1e-4 * ratio * times[1]


def interval(seed: int, ratio: float, *, shared: float, private: float) -> Ratio:
    return ratio_of_quantiles(*arms(seed, ratio, shared=shared, private=private), np.random.default_rng(seed))


def test_quantiles_pool_all_rounds() -> None:
    found = Quantiles.of(np.arange(1.0, 102.0).reshape(1, -1).repeat(2, axis=0))
    assert (found.p50, found.p95, found.p99) == pytest.approx((51, 96, 100))
    assert Quantiles(1e-6, 2e-6, 3e-6).document() == {"p50": 1.0, "p95": 2.0, "p99": 3.0}


def test_arms_without_noise_have_a_ratio_without_width() -> None:
    found = ratio_of_quantiles(np.full((3, 4), 2e-4), np.full((3, 4), 2.2e-4), np.random.default_rng(0))
    assert (found.value, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_two_rounds_by_hand() -> None:
    """Resamples hold rounds (1, 1), (1, 2), (2, 1) or (2, 2): ratios 1, 2, 2 and 4, with probability ¼ each."""
    found = ratio_of_quantiles(np.ones((2, 1)), np.array([[1.0], [4.0]]), np.random.default_rng(0))
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 1.0, 4.0))


def test_the_middle_half_decides() -> None:
    """Rounds in which a neighbour met one arm only do not move the estimate."""
    other = np.full((8, 3), 1.02)
    other[0], other[5] = 9.0, 0.3
    assert ratio_of_quantiles(np.ones((8, 3)), other, np.random.default_rng(0)).value == pytest.approx(1.02)
    rows = np.array([[5.0, 1.0, 2.0, 100.0], [1.0, 2.0, 3.0, 4.0]])
    assert interquartile_mean(rows).tolist() == [3.5, 2.5]
    assert interquartile_mean(np.array([[1.0, 2.0, 6.0]])).tolist() == [3.0]


def test_more_confidence_is_a_wider_interval() -> None:
    samples = arms(1, 1.0, shared=0.1, private=0.1)
    narrow, wide = (ratio_of_quantiles(*samples, np.random.default_rng(0), confidence=c) for c in (0.9, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (narrow.value, narrow.confidence, wide.confidence) == (wide.value, 0.9, 0.99)


def test_both_arms_are_resampled_by_the_same_rounds() -> None:
    """Rounds differ by 30 % for both arms. Resampled apart, the interval would be about 0.4 wide."""
    found = interval(0, 1.05, shared=0.3, private=0.0)
    assert found.contains(1.05)
    assert found.high - found.low < 0.1


def test_another_quantile_can_be_compared() -> None:
    baseline = np.ones((5, 100))
    other = baseline.copy()
    other[:, -3:] = 4.0
    assert ratio_of_quantiles(baseline, other, np.random.default_rng(0)).value == 1.0
    assert ratio_of_quantiles(baseline, other, np.random.default_rng(0), quantile=0.99).value == 4.0


@pytest.mark.parametrize("ratio", [1.0, 1.03])
def test_the_interval_holds_the_truth_about_nine_times_in_ten(ratio: float) -> None:
    """Calls of a round move together by 10 %: an interval over calls would hold the truth less than half the time."""
    held = [interval(seed, ratio, shared=0.2, private=0.1).contains(ratio) for seed in range(100)]
    assert 0.78 <= np.mean(held) <= 0.97


def test_the_interval_shows_a_difference_that_is_there() -> None:
    assert not any(interval(seed, 1.1, shared=0.2, private=0.02).contains(1.0) for seed in range(20))


def test_the_seed_decides_the_interval() -> None:
    assert interval(3, 1.0, shared=0.1, private=0.1) == interval(3, 1.0, shared=0.1, private=0.1)


@pytest.mark.parametrize(("left", "right"), [(1, 1), (3, 4)])
def test_rounds_must_match_and_be_several(left: int, right: int) -> None:
    with pytest.raises(ValueError, match="two or more rounds"):
        ratio_of_quantiles(np.ones((left, 5)), np.ones((right, 5)), np.random.default_rng(0))
