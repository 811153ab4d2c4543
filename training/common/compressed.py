"""Compressed rows: row ``r`` has ``entries[offsets[r]:offsets[r + 1]]``. What must hold before they are relied on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def are_offsets(offsets: NDArray[Any], n_rows: int, n_entries: int) -> bool:
    """Tell whether these are int64 [n_rows + 1], ascending from 0 to ``n_entries``."""
    if offsets.dtype != np.int64 or offsets.shape != (n_rows + 1,):
        return False
    # Neighbours are compared and not subtracted: a difference of two int64 may wrap around.
    return bool(offsets[0] == 0 and offsets[-1] == n_entries and not np.any(offsets[1:] < offsets[:-1]))


def are_items(items: NDArray[Any], n_items: int) -> bool:
    """Tell whether these are int32 [n], each the row of one of ``n_items`` items."""
    if items.dtype != np.int32 or items.ndim != 1:
        return False
    return not len(items) or bool(items.min() >= 0 and items.max() < n_items)


def ascend(offsets: NDArray[Any], entries: NDArray[Any]) -> bool:
    """Tell whether the entries of each row are strictly ascending, and so distinct."""
    ascending = entries[1:] > entries[:-1]
    starts = offsets[1:-1]
    starts = starts[(starts > 0) & (starts < len(entries))]
    ascending[starts - 1] = True  # between the last entry of one row and the first of the next
    return bool(ascending.all())
