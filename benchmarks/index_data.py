"""Vectors of a catalogue that was never there: clusters of Zipf sizes, few strong directions, unequal lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 128
CENTRES = 2000
ZIPF = 0.8
SPECTRUM = -0.5
NORM_SIGMA = 0.25
SPREAD = 1.0
QUERY_NOISE = 0.5
SEED = 0
BLOCK = 50_000
"""Items that are drawn at a stretch."""


@dataclass(frozen=True)
class IndexData:
    """Items and two kinds of queries.

    Attributes:
        items: float32 [n, D].
        near: float32 [q, D], each near one item.
        mixed: float32 [q, D], each near the average of three centres.
    """

    items: NDArray[np.float32]
    near: NDArray[np.float32]
    mixed: NDArray[np.float32]

    @property
    def queries(self) -> dict[str, NDArray[np.float32]]:
        """Both kinds by name."""
        return {"near": self.near, "mixed": self.mixed}


def description() -> dict[str, Any]:
    """Return how the vectors are drawn, as JSON values."""
    return {
        "dimension": DIMENSION,
        "centres": CENTRES,
        "items": "direction: a centre drawn by Zipf, plus as much Gaussian noise of the same spectrum times 'spread'; "
        "length: log-normal",
        "near": "the direction of an item drawn uniformly, plus noise of length 'query_noise'",
        "mixed": "the direction of the average of three centres drawn by Zipf, plus noise of length 'query_noise'",
        "zipf_exponent": ZIPF,
        "standard_deviation_of_direction_j": f"j^{SPECTRUM}, in a random rotation",
        "norm_sigma": NORM_SIGMA,
        "spread": SPREAD,
        "query_noise": QUERY_NOISE,
        "seed": SEED,
    }


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


class Vectors:
    """Vectors of one catalogue, drawn in turns: the same calls in the same order give the same vectors.

    Args:
        dimension: D.
        centres: Number of clusters.
        seed: Of the generator.

    Attributes:
        generator: Where everything is drawn from.
        centres: float32 [C, D].
    """

    def __init__(self, dimension: int = DIMENSION, centres: int = CENTRES, seed: int = SEED) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))
        drawn = self.generator.standard_normal((dimension, dimension))
        self._rotation = np.linalg.qr(drawn)[0].astype(np.float32)
        self._deviations = (np.arange(1, dimension + 1) ** SPECTRUM).astype(np.float32)
        self.centres = self.noise(centres)
        weights = np.arange(1, centres + 1) ** -ZIPF
        self._weights = weights / weights.sum()

    def noise(self, count: int) -> NDArray[np.float32]:
        """Draw Gaussian vectors with the spectrum of all others, float32 [count, D]."""
        drawn = self.generator.standard_normal((count, len(self._deviations)), dtype=np.float32)
        return np.asarray((drawn * self._deviations) @ self._rotation, dtype=np.float32)

    def choose(self, size: int | tuple[int, int]) -> NDArray[np.int64]:
        """Draw centres by Zipf."""
        return self.generator.choice(len(self.centres), size=size, p=self._weights)

    def items(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Draw items: vectors float32 [count, D], and the rows of their centres, int64 [count]."""
        chosen = self.choose(count)
        lengths = self.generator.lognormal(0, NORM_SIGMA, (count, 1)).astype(np.float32)
        return _unit(self.centres[chosen] + SPREAD * self.noise(count)) * lengths, chosen

    def near(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Draw a query near the direction of each of some vectors, float32 [n, D]."""
        return _unit(vectors) + QUERY_NOISE * _unit(self.noise(len(vectors)))


def draw(n_items: int, n_queries: int) -> IndexData:
    """Draw items and queries; the same counts give the same vectors.

    Args:
        n_items: Number of items.
        n_queries: Number of queries of each kind.
    """
    vectors = Vectors()
    items = np.empty((n_items, DIMENSION), dtype=np.float32)
    for start in range(0, n_items, BLOCK):
        part = items[start : start + BLOCK]
        part[:] = vectors.items(len(part))[0]
    near = vectors.near(items[vectors.generator.integers(n_items, size=n_queries)])
    mixed = vectors.near(vectors.centres[vectors.choose((n_queries, 3))].mean(axis=1))
    return IndexData(items, near, mixed)
