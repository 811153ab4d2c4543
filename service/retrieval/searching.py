"""Answers by a FAISS index and by exact scores alone."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from export.index_search import contained, search_threads
from service.retrieval.scores import Ranked, exact_scores, ranked
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from export.index_search import ItemIndex
    from service.retrieval.ranking import Query

_SLACK = 16
FEW, _FEW_PER_K, _SHARE = 512, 4, 16
"""Scoring exactly so many candidates, a multiple of k or a part of all items takes less than searching the index."""
_LONGER = 1 + 2.0**-20
"""By how much rounding to float32 may lengthen a mean of vectors, and far more."""


class Searcher:
    """Top-k by an index: the exact one with an exact index, and exact scores with every index.

    Args:
        items: float32 [I, D].
        index: An index over them.
        largest_item_norm: Euclidean norm of the longest of them.
        threads: Threads of one search.
    """

    def __init__(self, items: NDArray[np.float32], index: ItemIndex, *, largest_item_norm: float, threads: int) -> None:
        self._items, self._index, self._threads = items, index, threads
        self._means_fit = self._fits(_LONGER * largest_item_norm)
        # |float32 inner product - exact| <= gamma_D |u| |v| for every order of summation (Higham, Accuracy and
        # Stability of Numerical Algorithms, eq. 3.5), and a little for each operation that underflows; both are
        # doubled, for the smaller errors of the exact side.
        single, dimension = np.finfo(np.float32), items.shape[1]
        self._error_per_norm = 2 * dimension * float(single.eps) * largest_item_norm
        self._underflow = 4 * dimension * float(single.tiny)

    def few(self, k: int) -> int:
        """Return how many candidates for k items are better all scored than searched for."""
        return max(FEW, _FEW_PER_K * k, len(self._items) // _SHARE)

    def _fits(self, norm: float) -> bool:
        """Tell whether the index can be searched for vectors of this length: float32 must hold all products."""
        try:
            self._index.check_norm(norm)
        except BundleError:
            return False
        return True

    def _overflows(self, vector: NDArray[np.float32]) -> bool:
        """Tell whether a vector is too long to search for, which those of users are not."""
        return not (self._means_fit or self._fits(_norm(vector)))

    def best(self, queries: Sequence[Query]) -> list[Ranked]:
        """Answer by the exact index, in one search where the first fetch suffices.

        A cut that the index's rounding could have changed is repeated with a wider fetch.

        Args:
            queries: About all items each.
        """
        answers: dict[int, Ranked] = {}
        fetches = {position: q.k + len(q.seen) + _SLACK for position, q in enumerate(queries)}
        while fetches:
            for position in [
                p for p, f in fetches.items() if f >= len(self._items) or self._overflows(queries[p].vector)
            ]:
                answers[position] = self.all(queries[position])
                del fetches[position]
            if fetches:
                widest = max(fetches.values())
                pending = list(fetches)
                lowest, candidates = self._search(np.stack([queries[p].vector for p in pending]), widest)
                for position, bound, rows in zip(pending, lowest, candidates, strict=True):
                    answer = self._rank(queries[position], rows, float(bound))
                    if answer is None:
                        fetches[position] = 2 * widest
                    else:
                        answers[position] = answer
                        del fetches[position]
        return [answers[position] for position in range(len(queries))]

    def _search(self, vectors: NDArray[np.float32], fetch: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with search_threads(self._threads):
            scores, rows = self._index.index.search(vectors, fetch)
        return scores[:, -1], rows

    def proposed(self, query: Query) -> Ranked:
        """Rank what an approximate index proposes, or all that the query may have where that is too little."""
        if query.among is not None:
            return self._proposed_part(query, query.among)
        if self._overflows(query.vector):
            return self.all(query)
        with search_threads(self._threads):
            unseen = self._index.candidates(query.vector, query.k, query.seen)
        if len(unseen) < min(query.k, len(self._items) - len(query.seen)):
            return self.all(query)
        return self.order(query, np.sort(unseen))

    def _proposed_part(self, query: Query, among: NDArray[np.int32]) -> Ranked:
        """Rank what an index proposes of a part: it proposes the more, the smaller the part.

        If it finds the best of all items, then also those of the part, as soon as k of them are found.
        """
        if not self._overflows(query.vector):
            wanted = query.k * ceil(len(self._items) / len(among))
            with search_threads(self._threads):
                proposed = self._index.candidates(query.vector, wanted)
            found = proposed[contained(proposed, among)]
            if len(found) >= query.k:
                return self.order(query, np.sort(found))
        return self.order(query, among.astype(np.int64))

    def all(self, query: Query) -> Ranked:
        """Score all items that are not seen."""
        unseen = np.ones(len(self._items), dtype=np.bool_)
        unseen[query.seen] = False
        return self.order(query, np.flatnonzero(unseen))

    def _rank(self, query: Query, rows: NDArray[np.int64], lowest: float) -> Ranked | None:
        """Return the answer, or None where an item that was not fetched might belong into it."""
        answer = self.order(query, np.sort(rows[~contained(rows, query.seen)]))
        error = self._error_per_norm * _norm(query.vector) + self._underflow
        # At least k candidates are left: the fetch counts all seen items, and being smaller than the index it is full.
        return answer if answer.scores[-1] > lowest + error else None

    def order(self, query: Query, rows: NDArray[np.int64]) -> Ranked:
        """Return the best of some items.

        Args:
            query: Asks for how many, and of which vector the scores are.
            rows: int64 [n], strictly ascending.
        """
        return ranked(rows, exact_scores(self._items, rows, query.vector), query.k)


def _norm(vector: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))
