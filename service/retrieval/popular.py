"""The most popular items, for whom nothing is known."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from service.retrieval.rows import NO_ROWS, without
from service.retrieval.scores import Ranked

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LENGTHS = 16
"""Lists without any filter that are kept: few lengths are asked for."""


class Popular:
    """Items by (training interactions descending, row ascending).

    Args:
        counts: int64 [I], training interactions of each item.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._counts = counts
        self._order = np.argsort(-counts, kind="stable").astype(np.int32)
        self._first = lru_cache(maxsize=_LENGTHS)(lambda k: self._ranked(self._order[:k]))

    def top(self, k: int, left_out: NDArray[np.int32] = NO_ROWS, among: NDArray[np.int32] | None = None) -> Ranked:
        """Return the k most popular items, or all that there are.

        Args:
            k: At least 1.
            left_out: Rows never to return, strictly ascending.
            among: The only rows to choose from, strictly ascending; None for all.
        """
        if among is not None:
            return self._ranked(self._of_part(without(among, left_out), k))
        if len(left_out) == 0:
            return self._first(k)
        first = self._order[: k + len(left_out)]
        return self._ranked(first[~np.isin(first, left_out)][:k])

    def _ranked(self, rows: NDArray[np.int32]) -> Ranked:
        return Ranked(rows.astype(np.int64), self._counts[rows].astype(np.float64))

    def _of_part(self, rows: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        counts = self._counts[rows]
        if k < len(rows):
            reached = counts >= np.partition(counts, len(rows) - k)[len(rows) - k]
            rows, counts = rows[reached], counts[reached]
        return rows[np.argsort(-counts, kind="stable")[:k]]
