"""Candidates from an index, found in one way by exporter, verifier and service, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from export.bundle import IndexEntry, Recall
from export.index_layout import Layout
from training.common.errors import BundleError

RECALL_K = 10
"""The length of a usual reply, and of the lists that the literature on indexes compares."""
MAX_RECALL_USERS = 10_000
RECALL_TOLERANCE = 0.002
"""How far a recall measured again may lie from the manifest's: machines round differently, and ties are cut."""
_ROUNDING = 2e-6


@contextmanager
def search_threads(count: int) -> Iterator[None]:
    """Let FAISS use this many threads in the block, in the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def sample_users(n_users: int) -> NDArray[np.int64]:
    """Return the rows of the users that a recall is measured with, int64, evenly spaced."""
    return np.linspace(0, n_users - 1, min(n_users, MAX_RECALL_USERS)).astype(np.int64)


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
        if not self._reach * largest < float(np.finfo(np.float32).max) / 4:
            raise BundleError("scores of this bundle overflow float32; train and export the model again")

    def candidates(self, vector: NDArray[np.float32], k: int, unwanted: int = 0) -> NDArray[np.int64]:
        """Search for one query alone, so that its answer never depends on what else is asked at the same time.

        Args:
            vector: float32 [D], passed by ``check_norm``.
            k: Items wanted.
            unwanted: Items that the caller will drop.

        Returns:
            Distinct rows, int64, as many as the index finds of ``overfetch * k + unwanted``.
        """
        count = min(self._overfetch * k + unwanted, self.index.ntotal)
        rows = self.index.search(vector[None], count)[1][0]
        return np.asarray(rows[rows >= 0], dtype=np.int64)

    def recall(self, items: NDArray[np.float32], truth: Truth) -> Recall:
        """Measure the share of the best items that are among the candidates.

        Candidates are scored exactly afterwards, so these are the items that a reply holds.

        Args:
            items: float32 [I, D].
            truth: Queries and what the best scores are.

        Returns:
            The recall.

        Raises:
            BundleError: The queries are too long, see ``check_norm``.
        """
        self.check_norm(truth.largest_norm)
        found = 0
        with search_threads(1):
            for vector, least in zip(truth.vectors, truth.least, strict=True):
                scores = items[self.candidates(vector, truth.k)] @ vector
                found += min(int((scores >= least).sum()), truth.k)
        return Recall(k=truth.k, value=found / (truth.k * len(truth.vectors)), users=len(truth.vectors))


class Truth:
    """The exact answers to some queries.

    Args:
        items: float32 [I, D].
        vectors: Queries, float32 [n, D].
        k: Items wanted; where there are fewer, all of them.

    Attributes:
        vectors: As given.
        k: Items wanted.
        least: float32 [n], the score that an item among the k best has at least, but for rounding.
        largest_norm: Euclidean norm of the longest query.

    Raises:
        BundleError: A query is no number.
    """

    def __init__(self, items: NDArray[np.float32], vectors: NDArray[np.float32], k: int = RECALL_K) -> None:
        if not np.isfinite(vectors).all():
            raise BundleError("user vectors hold NaN or infinite values; train and export the model again")
        self.vectors = np.ascontiguousarray(vectors)
        self.k = min(k, len(items))
        scores = faiss.knn(self.vectors, items, self.k, metric=faiss.METRIC_INNER_PRODUCT)[0]
        self.least: NDArray[np.float32] = scores[:, -1] - np.float32(_ROUNDING) * np.abs(scores).max(axis=1)
        self.largest_norm = float(np.linalg.norm(self.vectors.astype(np.float64), axis=1).max())

    def some(self, count: int) -> Truth:
        """Return the same for about this many queries, evenly spaced."""
        part = object.__new__(Truth)
        chosen = np.linspace(0, len(self.vectors) - 1, min(count, len(self.vectors))).astype(np.int64)
        part.vectors, part.k, part.least = self.vectors[chosen], self.k, self.least[chosen]
        part.largest_norm = self.largest_norm
        return part
