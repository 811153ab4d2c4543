"""Sets of item rows: int32, strictly ascending."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

NO_ROWS = np.empty(0, dtype=np.int32)


def union(sets: Iterable[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Return the rows that are in any of some sets."""
    there = [rows for rows in sets if len(rows)]
    if len(there) < 2:
        return there[0] if there else NO_ROWS
    return np.unique(np.concatenate(there))


def without(rows: NDArray[np.int32], left_out: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rows of one set that are not in another. Fast where the other is small."""
    places = rows.searchsorted(left_out)
    inside = places < len(rows)
    places, left_out = places[inside], left_out[inside]
    return np.delete(rows, places[rows[places] == left_out])
