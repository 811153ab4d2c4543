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
_BLOCK = 50_000


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


def draw(n_items: int, n_queries: int) -> IndexData:
    """Draw items and queries; the same counts give the same vectors.

    Args:
        n_items: Number of items.
        n_queries: Number of queries of each kind.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    rotation = np.linalg.qr(generator.standard_normal((DIMENSION, DIMENSION)))[0].astype(np.float32)
    deviations = (np.arange(1, DIMENSION + 1) ** SPECTRUM).astype(np.float32)

    def noise(count: int) -> NDArray[np.float32]:
        drawn = generator.standard_normal((count, DIMENSION), dtype=np.float32)
        return np.asarray((drawn * deviations) @ rotation, dtype=np.float32)

    centres = noise(CENTRES)
    weights = np.arange(1, CENTRES + 1) ** -ZIPF
    weights /= weights.sum()
    items = np.empty((n_items, DIMENSION), dtype=np.float32)
    for start in range(0, n_items, _BLOCK):
        part = items[start : start + _BLOCK]
        chosen = generator.choice(CENTRES, size=len(part), p=weights)
        lengths = generator.lognormal(0, NORM_SIGMA, (len(part), 1)).astype(np.float32)
        part[:] = _unit(centres[chosen] + SPREAD * noise(len(part))) * lengths
    near = _unit(items[generator.integers(n_items, size=n_queries)]) + QUERY_NOISE * _unit(noise(n_queries))
    three = generator.choice(CENTRES, size=(n_queries, 3), p=weights)
    mixed = _unit(centres[three].mean(axis=1)) + QUERY_NOISE * _unit(noise(n_queries))
    return IndexData(items, near, mixed)
