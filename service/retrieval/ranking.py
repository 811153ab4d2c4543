"""Top-k over item vectors: a scan or an index proposes candidates, exact float64 scores decide."""

from __future__ import annotations

import logging
from math import floor
from typing import TYPE_CHECKING, NamedTuple, cast

import faiss
import numpy as np

from export.bundle import INDEX
from export.index import read_index
from export.index_search import Truth
from service.retrieval.rows import NO_ROWS, without
from service.retrieval.scan import NEVER, Code, Codes, Scan, ScanError
from service.retrieval.searching import FEW, Searcher
from service.retrieval.similar import Similar
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from export.manifest import IndexEntry
    from service.retrieval.scores import Ranked

_MOST_GROUP = 64
_GROUPS_PER_ITEM = 8
_PART, _PART_PER_K, _PART_SHARE = 256, 4, 64
"""Scoring exactly so many items, or such a part of all, takes less than scanning them all."""

_log = logging.getLogger(__name__)


class Query(NamedTuple):
    """One user's question.

    Attributes:
        vector: float32 [D].
        seen: int32 [S], item rows never to return, strictly ascending.
        k: Number of items wanted, at least 1.
        code: The vector as `Ranker.encode` coded it; it is coded anew where this is left out.
        among: int32 [A], the only item rows to choose from, strictly ascending; None for all.
    """

    vector: NDArray[np.float32]
    seen: NDArray[np.int32]
    k: int
    code: Code | None = None
    among: NDArray[np.int32] | None = None


class Ranker:
    """Top-k for batches of queries: the exact one with an exact index, and exact scores with every index.

    Over an exact index all items are first scanned in 8-bit integers, `service.retrieval.scan`, which leaves the few
    that can be among the best; where it leaves many, or this machine cannot scan, the index is searched. An approximate
    index may miss items of the top-k, as often as the manifest's recall says; whatever it proposes is scored exactly,
    and each query is searched for alone, so that its answer does not depend on its batch.

    A query that is restricted to a part of the items is answered in the same way: the few items of a small part are all
    scored, of a larger one the candidates among what was scanned or proposed; FAISS is told nothing of the part.

    Args:
        index: Serialised FAISS index over ``items``, inner product.
        entry: What the manifest says of it.
        items: float32 [I, D]. With an exact index, which holds them too, they are not kept.
        largest_user_norm: Euclidean norm of the longest user vector. Other vectors may be asked for too, if they are
            means of item vectors.
        threads: Threads of one scan and of one index search.

    Attributes:
        similar: Items like an item.

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
        self._index.check_norm(largest_user_norm)
        self.similar = Similar(self._items, None if entry.exact else self._index, threads=threads)
        self._searcher = Searcher(
            self._items, self._index, largest_item_norm=self.similar.largest_norm, threads=threads
        )
        self._scan: Scan | None = None
        if entry.exact:
            try:
                self._scan = Scan(self._items, threads=threads)
            except ScanError as error:
                # Searching the index gives the same answers.
                _log.warning("requests are answered exactly but more slowly: %s", error)

    def _held(self, items: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors of the exact index as it holds them, after a comparison with the items."""
        held = faiss.rev_swig_ptr(self._index.index.get_xb(), items.size).reshape(items.shape)
        if not np.array_equal(held, items):
            raise BundleError("the item index holds other vectors than items.npy; export the bundle again")
        return cast("NDArray[np.float32]", held)

    def mean(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the mean of some items' vectors, float32 [D], taken in float64.

        Args:
            rows: int32 [n], at least one, strictly ascending.
        """
        mean: NDArray[np.float64] = self._items[rows].astype(np.float64).mean(axis=0)
        return mean.astype(np.float32)

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

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's execution providers of the scan's session; none where nothing is scanned."""
        return () if self._scan is None else self._scan.providers

    def encode(self, blocks: Iterable[NDArray[np.float32]]) -> Codes | None:
        """Code user vectors once for all queries about them.

        Args:
            blocks: float32 [n, D] each, finite.

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
            Per query ``min(k, items that it may have)`` items in exact order: the best ones, or of an approximate index
            the best of what it proposes.
        """
        for query in queries:
            if query.among is not None:
                return self._top_of_parts(queries)
        return self._top_of_all(queries)

    def _top_of_parts(self, queries: Sequence[Query]) -> list[Ranked]:
        """Answer queries of which some are restricted to a part of the items."""
        reduced = [
            query if query.among is None else query._replace(among=without(query.among, query.seen), seen=NO_ROWS)
            for query in queries
        ]
        answers = [self._rank_part(query) for query in reduced]
        left = [query for query, answer in zip(reduced, answers, strict=True) if answer is None]
        found = iter(self._top_of_all(left))
        return [next(found) if answer is None else answer for answer in answers]

    def _rank_part(self, query: Query) -> Ranked | None:
        """Answer by scoring a whole part where that takes least; None for a query that other ways answer."""
        if query.among is None:
            return None
        if self._scan is not None:
            whole = len(query.among) <= max(_PART, _PART_PER_K * query.k, len(self._items) // _PART_SHARE)
        else:
            whole = self._index.entry.exact or len(query.among) <= self._searcher.few(query.k)
        return self._searcher.order(query, query.among.astype(np.int64)) if whole else None

    def _top_of_all(self, queries: Sequence[Query]) -> list[Ranked]:
        if not self._index.entry.exact:
            return [self._searcher.proposed(query) for query in queries]
        if self._scan is None:
            return self._searcher.best(queries)
        answers: list[Ranked | None] = []
        for start in range(0, len(queries), self._scan.most_users):
            answers += self._rank_scanned(self._scan, queries[start : start + self._scan.most_users])
        if None not in answers:
            return cast("list[Ranked]", answers)
        left = [query for query, answer in zip(queries, answers, strict=True) if answer is None]
        searched = iter(self._searcher.best(left))
        return [next(searched) if answer is None else answer for answer in answers]

    def _rank_scanned(self, scan: Scan, queries: Sequence[Query]) -> list[Ranked | None]:
        """Answer those queries whose candidates are few."""
        codes = [query.code or scan.encode(query.vector[None]).of(0) for query in queries]
        sums = scan([code.levels for code in codes])
        return [self._rank_row(query, row, code.error) for query, row, code in zip(queries, sums, codes, strict=True)]

    def _rank_row(self, query: Query, sums: NDArray[np.int32], error: float) -> Ranked | None:
        """Return the answer, or None where too many items might belong into it."""
        if query.among is not None:
            return self._rank_sums(query, query.among, sums[query.among], error)
        n_items = len(sums)
        if n_items - len(query.seen) <= query.k:
            return self._searcher.all(query)
        sums[query.seen] = NEVER
        least = floor(_kth_largest(sums, query.k) - 2 * error)
        # NumPy compares with a number of its own twice as fast as with one of Python's.
        rows = (sums >= np.int32(max(least, NEVER + 1))).nonzero()[0]
        # Where most items are left, scores lie so close together that the index's own rounding would not settle them.
        if FEW < len(rows) < n_items // 2 and len(rows) > self._searcher.few(query.k):
            return None
        return self._searcher.order(query, rows)

    def _rank_sums(self, query: Query, rows: NDArray[np.int32], sums: NDArray[np.int32], error: float) -> Ranked:
        """Answer from a part, of more than k items: the index would be searched for all of them."""
        least = _kth_largest(sums, query.k) - 2 * error
        return self._searcher.order(query, rows[sums >= least].astype(np.int64))


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
