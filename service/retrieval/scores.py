"""Exact scores, and the order that they put items in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from export.scores import inner_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 4096
"""Vectors that are looked at together: in float64 they still fit into a processor's cache."""


class Ranked(NamedTuple):
    """Items in order of (score descending, row ascending).

    Attributes:
        rows: int64 [n].
        scores: float64 [n].
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


def ranked(rows: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> Ranked:
    """Return the best k of some items, or all of them where they are fewer.

    Args:
        rows: int64 [n], strictly ascending.
        scores: float64 [n].
        k: At least 0.
    """
    order = (-scores).argsort(kind="stable")[:k]
    return Ranked(rows[order], scores[order])


def exact_scores(
    items: NDArray[np.float32], rows: NDArray[np.int64], vector: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the inner products of a user and some items, as `export.scores.inner_products` defines them.

    Args:
        items: float32 [I, D].
        rows: int64 [n], rows of ``items``.
        vector: float32 [D].

    Returns:
        float64 [n].
    """
    wide = vector.astype(np.float64)
    if len(rows) <= CHUNK:
        return inner_products(items, rows, wide)
    parts = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    return np.concatenate([inner_products(items, part, wide) for part in parts])
