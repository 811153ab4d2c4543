"""Top-k over item vectors: a scan or an index proposes candidates, exact float64 scores decide."""

from __future__ import annotations

import logging
from math import floor
from typing import TYPE_CHECKING, NamedTuple, cast

import faiss
import numpy as np

from export.bundle import INDEX
from export.index import read_index
from export.index_search import Truth, contained, search_threads
from export.scores import inner_products
from service.retrieval.scan import NEVER, Code, Codes, Scan, ScanError
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from export.manifest import IndexEntry

_SLACK = 16
_CHUNK = 4096
_MOST_GROUP = 32
_GROUPS_PER_ITEM = 8
_FEW, _FEW_PER_K, _SHARE = 512, 4, 16
"""Scoring exactly so many candidates, a multiple of k or a part of all items takes less than searching the index."""

_log = logging.getLogger(__name__)


class Query(NamedTuple):
    """One user's question.

    Attributes:
        vector: float32 [D].
        seen: int32 [S], item rows never to return, strictly ascending.
        k: Number of items wanted, at least 1.
        code: The vector as `Ranker.encode` coded it; it is coded anew where this is left out.
    """

    vector: NDArray[np.float32]
    seen: NDArray[np.int32]
    k: int
    code: Code | None = None


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
    """Return the inner products of a user and some items, as `export.scores.inner_products` defines them.

    Args:
        items: float32 [I, D].
        rows: int64 [n], rows of ``items``.
        vector: float32 [D].

    Returns:
        float64 [n].
    """
    wide = vector.astype(np.float64)
    if len(rows) <= _CHUNK:
        return inner_products(items, rows, wide)
    parts = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    return np.concatenate([inner_products(items, part, wide) for part in parts])


class Ranker:
    """Top-k for batches of queries: the exact one with an exact index, and exact scores with every index.

    Over an exact index all items are first scanned in 8-bit integers, `service.retrieval.scan`, which leaves the few
    that can be among the best; where it leaves many, or this machine cannot scan, the index is searched. An approximate
    index may miss items of the top-k, as often as the manifest's recall says; whatever it proposes is scored exactly,
    and each query is searched for alone, so that its answer does not depend on its batch.

    Args:
        index: Serialised FAISS index over ``items``, inner product.
        entry: What the manifest says of it.
        items: float32 [I, D]. With an exact index, which holds them too, they are not kept.
        largest_user_norm: Euclidean norm of the longest vector that will be asked for.
        threads: Threads of one scan and of one index search.

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
        self._items = self._held(items) if entry.exact else items
        self._threads = threads
        largest_item_norm = max(
            float(np.linalg.norm(items[start : start + _CHUNK].astype(np.float64), axis=1).max())
            for start in range(0, n_items, _CHUNK)
        )
        self._index.check_norm(largest_user_norm)
        # |float32 inner product - exact| <= gamma_D |u| |v| for every order of summation (Higham, Accuracy and
        # Stability of Numerical Algorithms, eq. 3.5); doubled, for the smaller errors of the exact side.
        unit = dimension * float(np.finfo(np.float32).eps)
        self._error_per_norm = 2 * unit * largest_item_norm
        self._scan: Scan | None = None
        if entry.exact:
            try:
                self._scan = Scan(self._items, largest_user_norm=largest_user_norm, threads=threads)
            except ScanError as error:
                # Searching the index gives the same answers.
                _log.warning("requests are answered exactly but more slowly: %s", error)

    def _held(self, items: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors of the exact index as it holds them, after a comparison with the items."""
        held = faiss.rev_swig_ptr(self._index.index.get_xb(), items.size).reshape(items.shape)
        if not np.array_equal(held, items):
            raise BundleError("the item index holds other vectors than items.npy; export the bundle again")
        return cast("NDArray[np.float32]", held)

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

    def encode(self, blocks: Iterable[NDArray[np.float32]]) -> Codes | None:
        """Code user vectors once for all queries about them.

        Args:
            blocks: float32 [n, D] each, finite, none longer than promised.

        Returns:
            The codes of all, in order, for queries to carry; None where they need none.
        """
        if self._scan is None:
            return None
        parts = [self._scan.encode(block) for block in blocks]
        return Codes(np.concatenate([part.levels for part in parts]), np.concatenate([part.errors for part in parts]))

    def top(self, queries: Sequence[Query]) -> list[Ranked]:
        """Answer all queries, with an exact index by one scan as far as its buffer reaches.

        Each answer depends on its own query alone, not on the batch or on the arithmetic of scan and index: candidates
        are re-scored exactly, and include every item that rounding could have kept from the best.

        Args:
            queries: Any number of them.

        Returns:
            Per query ``min(k, items not seen)`` items in exact order: the best ones, or of an approximate index the
            best of what it proposes.
        """
        if not self._index.entry.exact:
            return [self._rank_proposed(query) for query in queries]
        if self._scan is None:
            return self._rank_searched(queries)
        answers: list[Ranked | None] = []
        for start in range(0, len(queries), self._scan.most_users):
            answers += self._rank_scanned(self._scan, queries[start : start + self._scan.most_users])
        if None not in answers:
            return cast("list[Ranked]", answers)
        left = [query for query, answer in zip(queries, answers, strict=True) if answer is None]
        searched = iter(self._rank_searched(left))
        return [next(searched) if answer is None else answer for answer in answers]

    def _rank_scanned(self, scan: Scan, queries: Sequence[Query]) -> list[Ranked | None]:
        """Answer those queries whose candidates are few."""
        codes = [query.code or scan.encode(query.vector[None]).of(0) for query in queries]
        sums = scan([code.levels for code in codes])
        return [self._rank_row(query, row, code.error) for query, row, code in zip(queries, sums, codes, strict=True)]

    def _rank_row(self, query: Query, sums: NDArray[np.int32], error: float) -> Ranked | None:
        """Return the answer, or None where too many items might belong into it."""
        n_items = len(sums)
        if n_items - len(query.seen) <= query.k:
            return self._rank_all(query)
        sums[query.seen] = NEVER
        least = floor(_kth_largest(sums, query.k) - 2 * error)
        rows = (sums >= max(least, NEVER + 1)).nonzero()[0]
        few = max(_FEW, _FEW_PER_K * query.k, n_items // _SHARE)
        # Where most items are left, scores lie so close together that the index's own rounding would not settle them.
        if few < len(rows) < n_items // 2:
            return None
        return self._order(query, rows)

    def _rank_searched(self, queries: Sequence[Query]) -> list[Ranked]:
        """Answer by the exact index, in one search where the first fetch suffices.

        A cut that the index's rounding could have changed is repeated with a wider fetch.
        """
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


def _kth_largest(sums: NDArray[np.int32], k: int) -> int:
    """Return a number that at least k of the sums reach, above `NEVER`, and hardly more of them.

    The maxima of groups are sums of different items, and the best k hardly ever share a group where there are many.

    Args:
        sums: int32 [n], more than k of them above `NEVER`.
        k: At least 1.
    """
    size = min(_MOST_GROUP, len(sums) // (_GROUPS_PER_ITEM * k))
    if size > 1:
        groups = len(sums) // size
        maxima = np.maximum.reduce(sums[: size * groups].reshape(size, groups), axis=0)
        maxima.partition(groups - k)
        if maxima[groups - k] > NEVER:
            return int(maxima[groups - k])
    return int(np.partition(sums, len(sums) - k)[len(sums) - k])
