"""Top-k over item vectors: an index proposes candidates, exact float64 scores decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from export.bundle import INDEX
from export.index import read_index
from export.index_search import Truth, contained, search_threads
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from export.manifest import IndexEntry

_SLACK = 16
_CHUNK = 4096


class Query(NamedTuple):
    """One user's question.

    Attributes:
        vector: float32 [D].
        seen: int32 [S], item rows never to return, strictly ascending.
        k: Number of items wanted, at least 1.
    """

    vector: NDArray[np.float32]
    seen: NDArray[np.int32]
    k: int


class Ranked(NamedTuple):
    """Items in order of (score descending, row ascending).

    Attributes:
        rows: int64 [n].
        scores: float64 [n].
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


def exact_scores(
    items: NDArray[np.float32], rows: NDArray[np.int64], vector: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return inner products in float64, each from its own two vectors only.

    A BLAS product may round a row differently by its place in the matrix, so that two equal items would get different
    scores. Here NumPy adds the products of each row pairwise along the last axis, in an order that depends on D alone.

    Args:
        items: float32 [I, D].
        rows: int64 [n], rows of ``items``.
        vector: float32 [D].

    Returns:
        float64 [n].
    """
    wide = vector.astype(np.float64)
    scores = np.empty(len(rows), dtype=np.float64)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        scores[start : start + len(part)] = np.multiply(items[part], wide).sum(axis=1)
    return scores


class Ranker:
    """Top-k for batches of queries: the exact one with an exact index, and exact scores with every index.

    An approximate index may miss items of the top-k, as often as the manifest's recall says; whatever it proposes is
    scored exactly, and each query is searched for alone, so that its answer does not depend on its batch.

    Args:
        index: Serialised FAISS index over ``items``, inner product.
        entry: What the manifest says of it.
        items: float32 [I, D].
        largest_user_norm: Euclidean norm of the longest vector that will be asked for.
        threads: Threads of one index search.

    Raises:
        BundleError: The bytes are no index over vectors of this shape, or scores would overflow float32.
    """

    def __init__(
        self,
        index: memoryview,
        entry: IndexEntry,
        items: NDArray[np.float32],
        *,
        largest_user_norm: float,
        threads: int,
    ) -> None:
        n_items, dimension = items.shape
        try:
            self._index = read_index(index, entry, n_items, dimension)
        except BundleError as error:
            raise BundleError(f"{INDEX}: {error}; export the bundle again") from error
        self._items = items
        self._threads = threads
        largest_item_norm = 0.0
        for start in range(0, n_items, _CHUNK):
            part = items[start : start + _CHUNK]
            if entry.exact and not np.array_equal(part, self._index.index.reconstruct_n(start, len(part))):
                raise BundleError("the item index holds other vectors than items.npy; export the bundle again")
            largest_item_norm = max(largest_item_norm, float(np.linalg.norm(part.astype(np.float64), axis=1).max()))
        self._index.check_norm(largest_user_norm)
        # |float32 inner product - exact| <= gamma_D |u| |v| for every order of summation (Higham, Accuracy and
        # Stability of Numerical Algorithms, eq. 3.5); doubled, for the smaller errors of the exact side.
        unit = dimension * float(np.finfo(np.float32).eps)
        self._error_per_norm = 2 * unit * largest_item_norm

    def recall(self, vectors: NDArray[np.float32], seen: Sequence[NDArray[np.int32]]) -> float:
        """Measure the index as at export.

        Args:
            vectors: float32 [n, D], of some users.
            seen: int32, the item rows never to return to each of them, strictly ascending.

        Returns:
            The share of their best items that the index finds.

        Raises:
            BundleError: Scores overflow float32.
        """
        return self._index.recall(Truth(self._items, vectors, seen)).value

    def top(self, queries: Sequence[Query]) -> list[Ranked]:
        """Answer all queries, with an exact index by one search where the first fetch suffices.

        Each answer depends on its own query alone, not on the batch or on the index's arithmetic: candidates are
        re-scored exactly, and a cut that the index's rounding could have changed is repeated with a wider fetch.

        Args:
            queries: Any number of them.

        Returns:
            Per query ``min(k, items not seen)`` items in exact order: the best ones, or of an approximate index the
            best of what it proposes.
        """
        if not self._index.entry.exact:
            return [self._rank_proposed(query) for query in queries]
        answers: dict[int, Ranked] = {}
        fetches = {position: q.k + len(q.seen) + _SLACK for position, q in enumerate(queries)}
        while fetches:
            for position in [p for p, fetch in fetches.items() if fetch >= len(self._items)]:
                answers[position] = self._rank_all(queries[position])
                del fetches[position]
            if fetches:
                widest = max(fetches.values())
                pending = list(fetches)
                lowest, candidates = self._search(np.stack([queries[p].vector for p in pending]), widest)
                for position, bound, rows in zip(pending, lowest, candidates, strict=True):
                    answer = self._rank_candidates(queries[position], rows, float(bound))
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

    def _rank_proposed(self, query: Query) -> Ranked:
        """Rank what an approximate index proposes, or all items where that is too little."""
        with search_threads(self._threads):
            unseen = self._index.candidates(query.vector, query.k, query.seen)
        if len(unseen) < min(query.k, len(self._items) - len(query.seen)):
            return self._rank_all(query)
        return self._order(query, unseen)

    def _rank_all(self, query: Query) -> Ranked:
        unseen = np.ones(len(self._items), dtype=np.bool_)
        unseen[query.seen] = False
        return self._order(query, np.flatnonzero(unseen))

    def _rank_candidates(self, query: Query, rows: NDArray[np.int64], lowest: float) -> Ranked | None:
        """Return the answer, or None where an item that was not fetched might belong into it."""
        answer = self._order(query, rows[~contained(rows, query.seen)])
        error = self._error_per_norm * float(np.linalg.norm(query.vector.astype(np.float64)))
        # At least k candidates are left: the fetch counts all seen items, and being smaller than the index it is full.
        return answer if answer.scores[-1] > lowest + error else None

    def _order(self, query: Query, rows: NDArray[np.int64]) -> Ranked:
        scores = exact_scores(self._items, rows, query.vector)
        order = np.lexsort((rows, -scores))[: query.k]
        return Ranked(rows[order], scores[order])
