"""The one way to score an item exactly. Needs NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inner_products(
    items: NDArray[np.float32], rows: NDArray[np.int64], wide: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return inner products in float64, each from its own two vectors only: the scores of service and files.

    A BLAS product may round a row differently by its place in the matrix, so that two equal items would get different
    scores. Here products of two float32 numbers are exact, and NumPy adds those of a pair along the last axis, in an
    order that depends on D alone: neither on the other pairs nor on where the vectors lie.

    Args:
        items: float32 [I, D].
        rows: int64 [n], rows of ``items``.
        wide: float32 numbers in float64: one vector [D] for all rows, or one for each, [n, D].

    Returns:
        float64 [n].
    """
    scores: NDArray[np.float64] = (items.take(rows, axis=0) * wide).sum(axis=1)
    return scores
