"""Does something grow, and how much longer has a tail become: estimates over time, with block bootstrap intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.statistics import Ratio

CONFIDENCE = 0.9
RESAMPLES = 1000
_TAIL_RESAMPLES = 300


@dataclass(frozen=True)
class Slope:
    """A straight line's slope, per second.

    Attributes:
        value: By least squares.
        low: Lower end of the bootstrap interval.
        high: Its upper end.
    """

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Slope:
        """Return it in another unit."""
        return Slope(self.value * factor, self.low * factor, self.high * factor)

    def document(self) -> dict[str, float]:
        """Return the slope as JSON values."""
        return asdict(self)


def slope(times: NDArray[np.float64], values: NDArray[np.float64], generator: np.random.Generator) -> Slope:
    """Fit a line by least squares, with an interval that knows that neighbours are alike.

    Memory moves in steps, and a reading says little that the one before it has not said: an interval from independent
    readings is far too narrow. So the residuals are drawn in circular blocks (Politis and Romano 1992) of the square
    root of their number, put onto the line, and fitted again; the interval is the basic one, the slope ± how far the
    new slopes lie from it.

    Args:
        times: Seconds, float64 [n], n ≥ 8.
        values: float64 [n].
        generator: Draws the blocks.

    Raises:
        ValueError: There are fewer than 8 readings.
    """
    n = len(times)
    if n < 8:
        raise ValueError(f"a slope wants 8 readings or more, got {n}")
    centred = times - times.mean()
    weights = centred / (centred @ centred)
    value = float(weights @ values)
    residuals = values - values.mean() - value * centred
    block = round(n**0.5)
    starts = generator.integers(n, size=(RESAMPLES, -(-n // block)))
    places = (starts[:, :, None] + np.arange(block)) % n
    moved = residuals[places.reshape(RESAMPLES, -1)[:, :n]] @ weights
    low, high = np.quantile(moved, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Slope(value, value - float(high), value - float(low))


def tail_ratio(
    calm: tuple[NDArray[np.float64], NDArray[np.float64]],
    loaded: tuple[NDArray[np.float64], NDArray[np.float64]],
    generator: np.random.Generator,
    *,
    quantile: float = 0.99,
) -> Ratio:
    """Compare two tails, loaded ÷ calm, by resampling the seconds of either stretch: those of one second are alike.

    Args:
        calm: When each reply's latency began and how long it was, in seconds, float64 [n] each.
        loaded: The same, float64 [m].
        generator: Draws the seconds.
        quantile: Of the latencies.

    Raises:
        ValueError: A stretch has no replies.
    """
    if not len(calm[1]) or not len(loaded[1]):
        raise ValueError("a ratio of tails wants replies in either stretch")
    value = np.quantile(loaded[1], quantile) / np.quantile(calm[1], quantile)
    drawn = [
        [
            np.quantile(np.concatenate([blocks[number] for number in numbers]), quantile)
            for numbers in generator.integers(len(blocks), size=(_TAIL_RESAMPLES, len(blocks)))
        ]
        for blocks in (_by_second(*calm), _by_second(*loaded))
    ]
    low, high = np.quantile(np.array(drawn[1]) / np.array(drawn[0]), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Ratio(float(value), float(low), float(high), CONFIDENCE)


def _by_second(begun: NDArray[np.float64], latencies: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    seconds = np.floor(begun).astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    borders = np.flatnonzero(np.diff(seconds[order])) + 1
    return np.split(latencies[order], borders)
