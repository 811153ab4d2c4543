"""Statistics of repeated timings: quantiles, and the ratio of two arms with a bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.9
RESAMPLES = 2000
_RESAMPLED_AT_ONCE = 4_000_000

Samples = NDArray[np.float64]
"""Seconds of every call, [rounds, calls]."""


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of one arm's call times, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, samples: Samples) -> Quantiles:
        """Pool all rounds."""
        return cls(*(float(value) for value in np.quantile(samples, (0.5, 0.95, 0.99))))

    def document(self) -> dict[str, float]:
        """Return the quantiles in microseconds, as JSON values."""
        return {name: round(value * 1e6, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Ratio:
    """How one arm's quantile compares with another's.

    Attributes:
        value: Quantile of the other arm ÷ quantile of the baseline.
        low: Lower end of the bootstrap interval.
        high: Its upper end.
        confidence: Share of intervals that are meant to hold the true ratio.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def contains(self, ratio: float) -> bool:
        """Whether a ratio lies inside the interval, ends included."""
        return self.low <= ratio <= self.high

    def document(self) -> dict[str, float]:
        """Return the ratio as JSON values."""
        return asdict(self)


def ratio_of_quantiles(
    baseline: Samples, other: Samples, generator: np.random.Generator, *, quantile: float = 0.5
) -> Ratio:
    """Compare two interleaved arms, ``other`` ÷ ``baseline``.

    The unit of the bootstrap is the round, because calls of one round share what the machine was doing and are no
    independent observations: resampling calls gives intervals that are far too narrow. A resample takes the same
    rounds of both arms, so what slows a whole round down cancels in the ratio.

    Args:
        baseline: Seconds, float64 [R, C].
        other: Seconds, float64 [R, C'], the same rounds.
        generator: Draws the resamples.
        quantile: Which quantile is compared; 0.5 is the median.

    Returns:
        The ratio of the pooled quantiles, with the percentile interval over resampled rounds.

    Raises:
        ValueError: The arms differ in rounds, or there are fewer than two.
    """
    rounds = len(baseline)
    if rounds != len(other) or rounds < 2:
        raise ValueError(f"a ratio wants the same two or more rounds of both arms, got {rounds} and {len(other)}")
    ratios = []
    at_once = max(1, _RESAMPLED_AT_ONCE // max(baseline.size, other.size))
    for start in range(0, RESAMPLES, at_once):
        chosen = generator.integers(rounds, size=(min(at_once, RESAMPLES - start), rounds))
        ratios.append(_pooled(other[chosen], quantile) / _pooled(baseline[chosen], quantile))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(ratios), (tail, 1 - tail))
    value = np.quantile(other, quantile) / np.quantile(baseline, quantile)
    return Ratio(float(value), float(low), float(high))


def _pooled(resamples: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """Return one quantile over rounds and calls of every resample, [n, R, C] → [n]."""
    pooled: NDArray[np.float64] = np.quantile(
        resamples.reshape(len(resamples), -1), quantile, axis=1, overwrite_input=True
    )
    return pooled
