"""Statistics of repeated timings: quantiles, and the ratio of two arms with a bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.9
RESAMPLES = 2000

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
    baseline: Samples,
    other: Samples,
    generator: np.random.Generator,
    *,
    quantile: float = 0.5,
    confidence: float = CONFIDENCE,
) -> Ratio:
    """Compare two interleaved arms, ``other`` ÷ ``baseline``.

    The unit is the round, because calls of one round share what the machine was doing and are no independent
    observations: resampling calls gives intervals that are far too narrow. Each round gives one ratio, of its own
    quantiles, so that what slows a whole round down cancels. Their interquartile mean is the estimate: it hears the
    quiet middle half and not the rounds in which a neighbour met one arm more than the other.

    Args:
        baseline: Seconds, float64 [R, C].
        other: Seconds, float64 [R, C'], the same rounds.
        generator: Draws the resamples.
        quantile: Which quantile of a round is compared; 0.5 is the median.
        confidence: Of the interval.

    Returns:
        The ratio, with the percentile bootstrap interval over resampled rounds.

    Raises:
        ValueError: The arms differ in rounds, or there are fewer than two.
    """
    rounds = len(baseline)
    if rounds != len(other) or rounds < 2:
        raise ValueError(f"a ratio wants the same two or more rounds of both arms, got {rounds} and {len(other)}")
    logs = np.log(np.quantile(other, quantile, axis=1) / np.quantile(baseline, quantile, axis=1))
    resampled = interquartile_mean(logs[generator.integers(rounds, size=(RESAMPLES, rounds))])
    tail = (1 - confidence) / 2
    low, high = np.exp(np.quantile(resampled, (tail, 1 - tail)))
    return Ratio(float(np.exp(interquartile_mean(logs[None])[0])), float(low), float(high), confidence)


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the middle half of every row, [n, R] → [n]; of two or three values, of all of them."""
    cut = values.shape[1] // 4
    ranked = np.sort(values, axis=1)
    return np.asarray(ranked[:, cut : values.shape[1] - cut].mean(axis=1))
