"""Candidates from an index, found in one way by exporter, verifier and service, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from export.index_layout import Layout, largest_norm
from export.manifest import IndexEntry, Recall
from training.common.errors import BundleError

RECALL_K = 10
"""The length of a usual reply, and of the lists that the literature on indexes compares."""
MAX_RECALL_USERS = 10_000
RECALL_TOLERANCE = 0.002
"""How far a recall measured again may lie from the manifest's: machines round differently, and ties are cut."""
_ROUNDING = 2e-6
_BLOCK_SCORES = 2**24
_NOTHING = np.empty(0, np.int32)


@contextmanager
def search_threads(count: int) -> Iterator[None]:
    """Let FAISS use this many threads in the block, in the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def sample_users(n_users: int, most: int = MAX_RECALL_USERS) -> NDArray[np.int64]:
    """Return the rows of the users that a recall is measured with, int64, evenly spaced."""
    return np.linspace(0, n_users - 1, min(n_users, most)).astype(np.int64)


def contained(rows: NDArray[np.int64], ascending: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell for each of some rows whether it is among strictly ascending ones."""
    if len(ascending) == 0:
        return np.zeros(len(rows), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    return np.asarray(ascending[places] == rows)


def check_products(one: float, other: float) -> None:
    """Refuse vectors whose inner products float32 could not hold.

    Args:
        one: Euclidean norm of the longest vector of one side.
        other: The same of the other side.

    Raises:
        BundleError: They are too long, or no numbers.
    """
    if not one * other < float(np.finfo(np.float32).max) / 4:
        raise BundleError("scores of this bundle overflow float32; train and export the model again")


class ItemIndex:
    """An index whose file has been walked, set to search as its manifest says.

    Args:
        index: The FAISS index.
        entry: Its entry in the manifest.
        layout: What the walk over its file found.

    Attributes:
        index: As given.
        entry: As given.

    Raises:
        BundleError: The manifest's search parameters do not belong to this kind of index, or lie outside its range.
    """

    def __init__(self, index: faiss.Index, entry: IndexEntry, layout: Layout) -> None:
        self.index = cast("Any", index)
        self.entry = entry
        self._reach = layout.reach
        limits: dict[str, int] = {} if entry.exact else {"overfetch": 1024}
        if layout.nlist:
            limits["nprobe"] = layout.nlist
        if layout.kind == "hnsw":
            limits["efSearch"] = max(index.ntotal, 1)
        if limits.keys() != entry.search.keys() or any(entry.search[name] > limit for name, limit in limits.items()):  # type: ignore[index]
            raise BundleError(f"the manifest searches it with {entry.search}, wanted at most {limits}")
        self._overfetch = entry.search.get("overfetch", 1)
        if layout.nlist:
            self.index.nprobe = entry.search["nprobe"]
        if layout.kind == "hnsw":
            self.index.hnsw.efSearch = entry.search["efSearch"]  # FAISS searches wider where more are asked for

    def check_norm(self, largest: float) -> None:
        """Refuse query vectors so long that a product with a stored vector would not be a number.

        Args:
            largest: Euclidean norm of the longest.

        Raises:
            BundleError: They are too long, or no numbers.
        """
        check_products(self._reach, largest)

    def candidates(self, vector: NDArray[np.float32], k: int, seen: NDArray[np.int32] = _NOTHING) -> NDArray[np.int64]:
        """Search for one query alone, so that its answer never depends on what else is asked at the same time.

        Args:
            vector: float32 [D], passed by ``check_norm``.
            k: Items wanted.
            seen: Rows that are left out, strictly ascending.

        Returns:
            Distinct rows that are not seen, int64: what is left of the ``overfetch * k + len(seen)`` that the index
            finds, or of fewer.
        """
        count = min(self._overfetch * k + len(seen), self.index.ntotal)
        rows = self.index.search(vector[None], count)[1][0]
        rows = np.asarray(rows[rows >= 0], dtype=np.int64)
        return rows[~contained(rows, seen)]

    def recall(self, truth: Truth) -> Recall:
        """Measure the share of the best items, without seen ones, that are among the candidates.

        Candidates are scored exactly afterwards, so a reply holds these items. Where the candidates do not fill it, the
        service looks at all items instead: replies are then better than the recall says.

        Args:
            truth: Queries and what the best scores are.

        Returns:
            The recall.

        Raises:
            BundleError: The queries are too long, see ``check_norm``.
        """
        self.check_norm(truth.largest_norm)
        with search_threads(1):
            found = sum(
                truth.found(query, self.candidates(vector, truth.k, seen))
                for query, (vector, seen) in enumerate(zip(truth.vectors, truth.seen, strict=True))
            )
        return Recall(k=truth.k, value=truth.share(found), users=len(truth.vectors))


class Truth:
    """The exact answers to some queries.

    Args:
        items: float32 [I, D].
        vectors: Queries, float32 [n, D].
        seen: Per query the rows that are no answers to it, strictly ascending; none if left out.
        k: Items wanted; where there are fewer, all of them.

    Attributes:
        vectors: As given.
        seen: As given.
        k: Items wanted.
        largest_norm: Euclidean norm of the longest query.

    Raises:
        BundleError: A query or an item is no number, or scores overflow float32.
    """

    def __init__(
        self,
        items: NDArray[np.float32],
        vectors: NDArray[np.float32],
        seen: Sequence[NDArray[np.int32]] | None = None,
        k: int = RECALL_K,
    ) -> None:
        if not np.isfinite(vectors).all():
            raise BundleError("user vectors hold NaN or infinite values; train and export the model again")
        self.vectors = np.ascontiguousarray(vectors)
        self.seen = [_NOTHING] * len(vectors) if seen is None else list(seen)
        self.k = min(k, len(items))
        self.largest_norm = largest_norm(self.vectors)
        check_products(largest_norm(items), self.largest_norm)
        self._items = items
        self._wanted = np.array([min(self.k, len(items) - len(rows)) for rows in self.seen])
        self._least = np.zeros(len(vectors), np.float32)
        size = max(1, _BLOCK_SCORES // len(items))
        for start in range(0, len(vectors), size):
            self._find_least(slice(start, min(start + size, len(vectors))))

    def _find_least(self, block: slice) -> None:
        """Set the scores that an item among the best of these queries has at least, but for rounding."""
        scores = self.vectors[block] @ self._items.T
        for row, seen in zip(scores, self.seen[block], strict=True):
            row[seen] = -np.inf
        first = scores.shape[1] - self.k
        scores.partition(first, axis=1)
        for query, best in enumerate(np.sort(scores[:, first:], axis=1), block.start):
            if self._wanted[query]:
                unseen = best[-self._wanted[query] :]
                self._least[query] = unseen[0] - np.float32(_ROUNDING) * np.abs(unseen).max()

    def found(self, query: int, rows: NDArray[np.int64]) -> int:
        """Count how many of the best items of a query are among distinct rows that are not seen, int64 [n]."""
        scores = self._items[rows] @ self.vectors[query]
        return min(int((scores >= self._least[query]).sum()), int(self._wanted[query]))

    def share(self, found: int) -> float:
        """Return what share of the best items this many of all queries are; where there are none, all are found."""
        wanted = int(self._wanted.sum())
        return found / wanted if wanted else 1.0

    def some(self, count: int) -> Truth:
        """Return the same for about this many queries, evenly spaced."""
        part = object.__new__(Truth)
        chosen = sample_users(len(self.vectors), count)
        part.vectors, part.seen = self.vectors[chosen], [self.seen[query] for query in chosen]
        part.k, part.largest_norm, part._items = self.k, self.largest_norm, self._items
        part._wanted, part._least = self._wanted[chosen], self._least[chosen]
        return part
