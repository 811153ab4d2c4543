"""Items like an item: the cosine of their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.index_search import search_threads
from service.retrieval.scores import CHUNK, Ranked, exact_scores, ranked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.index_search import ItemIndex

_MOST = 2**25
"""Numbers of all item vectors, of which one look takes a few milliseconds: with more, an approximate index is asked."""
_WIDER, _LEAST = 16, 1024
"""It proposes so many times as many items, and so many more: by inner product, long vectors come first."""
_FLOAT = np.finfo(np.float32)


class Similar:
    """The items with the largest cosines to one of them. Safe from any thread: it writes nothing.

    A cosine is defined as the inner product (`export.scores.inner_products`) over the product of both norms, in
    float64; that to a vector of zeros is 0. All items are looked through in float32, or, of very many, an approximate
    index proposes some; cosines in float64 decide.

    Derivation. Let u be the item's vector over its norm, rounded to float32, and w another item's vector. Whatever the
    order of summation, float32 arithmetic misses u.w by less than gamma_D |u| |w| (Higham, Accuracy and Stability of
    Numerical Algorithms, eq. 3.5), with gamma_D close to D 2^-24, and by 2^-126 for each of 2 D operations that may
    underflow. Rounding u adds less than 2^-24 |w|, everything in float64 far less than that. Over |w| this is less than

        error = 4 D 2^-24 + 2 D 2^-126 / min |w|

    so that every item among the best k comes within twice that of the k-th best float32 cosine.

    Args:
        items: float32 [I, D], finite.
        index: An approximate index over them; None where all are to be looked through.
        threads: Threads of one index search.

    Attributes:
        largest_norm: Euclidean norm of the longest item vector.
    """

    def __init__(self, items: NDArray[np.float32], index: ItemIndex | None, *, threads: int) -> None:
        n_items, dimension = items.shape
        self._items, self._threads = items, threads
        self._index = index if items.size > _MOST else None
        norms = np.empty(n_items)
        for start in range(0, n_items, CHUNK):
            wide = items[start : start + CHUNK].astype(np.float64)
            norms[start : start + CHUNK] = np.sqrt((wide * wide).sum(axis=1))
        self.largest_norm = float(norms.max())
        norms[norms == 0] = 1  # products with zeros are 0: so will be the cosines
        self._norms = norms
        underflow = 2 * dimension * float(_FLOAT.tiny) / float(norms.min())
        self._error = 2 * dimension * float(_FLOAT.eps) + underflow
        self._fits = self.largest_norm < float(_FLOAT.max) / 4

    def top(self, row: int, k: int) -> Ranked:
        """Return the ``min(k, I - 1)`` other items with the largest cosines.

        Args:
            row: An item.
            k: At least 1.
        """
        rows = self._candidates(row, k)
        scores = exact_scores(self._items, rows, self._items[row]) / (self._norms[rows] * self._norms[row])
        return ranked(rows, scores, k)

    def _candidates(self, row: int, k: int) -> NDArray[np.int64]:
        """Return other items, int64, strictly ascending, with the best among them."""
        if self._fits and k < len(self._items) - 1:
            unit = (self._items[row] / self._norms[row]).astype(np.float32)
            if self._index is None:
                return self._near(unit, row, k)
            with search_threads(self._threads):
                found = self._index.candidates(unit, _WIDER * k + _LEAST, np.array([row], dtype=np.int32))
            if len(found) >= k:
                return np.sort(found)
        return np.delete(np.arange(len(self._items)), row)

    def _near(self, unit: NDArray[np.float32], row: int, k: int) -> NDArray[np.int64]:
        cosines = (self._items @ unit) / self._norms
        cosines[row] = -np.inf
        least = np.partition(cosines, len(cosines) - k)[len(cosines) - k] - 2 * self._error
        rows: NDArray[np.int64] = (cosines >= least).nonzero()[0]
        return rows
