"""One bundle, ready to answer: user id in, recommended items out."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np

from export.bundle import INDEX
from export.index_search import sample_users
from export.serving import load_for_serving
from service.retrieval.ranking import Query, Ranker
from service.retrieval.tower import UserTower
from service.values import Recommendation, Request, ScoredItem
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from export.serving import ServingBundle
    from training.common.strings import StringTable

_LOOKS = (64, 1024)
"""Users that an approximate index is tried with: few at first, more before it is refused, for few may be unlucky."""
_RECALL_SLACK = 0.1
_NAMES = 2**16
"""Items whose id and title are kept as Python strings, those recommended last: some 20 MB at most."""


class Engine:
    """Recommendations from one verified bundle. Not for concurrent use: one thread at a time.

    Scores are exact; items too, unless the bundle's index is approximate: then as many of the best as its manifest's
    recall says.

    Args:
        bundle: What `export.serving.load_for_serving` returned.
        index_threads: Threads of one scan of the items, in ONNX Runtime, and of one index search, in FAISS.

    Attributes:
        manifest: The bundle's self-description.
        tower: User rows to vectors.
        ranker: Vectors and seen items to the best items.

    Raises:
        BundleError: The graph or the index cannot be loaded or does not fit the rest of the bundle, or the index finds
            far less than the manifest says.
    """

    def __init__(self, bundle: ServingBundle, *, index_threads: int = 1) -> None:
        self.manifest = bundle.manifest
        self._users = bundle.users
        self._name = _cached_names(bundle.item_ids, bundle.titles)
        self._users.find("")  # prepares the table for the first request
        self._seen = bundle.seen
        self._popularity = bundle.popularity
        rows = np.arange(len(bundle.items))
        self._popular: NDArray[np.int64] = np.lexsort((rows, -bundle.popularity))
        self.tower = UserTower(bundle.user_tower, len(bundle.users), bundle.manifest.dimension)
        self.ranker = Ranker(
            bundle.index,
            bundle.manifest.index,
            bundle.items,
            largest_user_norm=self.tower.largest_norm,
            threads=index_threads,
        )
        self._codes = self.ranker.encode(self.tower.blocks())
        self._check_recall()

    def _check_recall(self) -> None:
        """Refuse an approximate index over other vectors: answers would have exact scores, but be poor ones."""
        stated = self.manifest.index.recall
        if stated is None:
            return
        found = 0.0
        for most in _LOOKS:
            users = sample_users(len(self._users), most)
            found = self.ranker.recall(self.tower(users), [self._seen.of(user) for user in users])
            if found >= stated.value - _RECALL_SLACK:
                return
        raise BundleError(
            f"{INDEX} finds {found:.2f} of the best items, the manifest says {stated.value:.2f}; "
            "export the bundle again"
        )

    @classmethod
    def load(cls, folder: Path, *, index_threads: int = 1) -> Self:
        """Load a bundle folder.

        Raises:
            BundleError: The bundle is missing, altered or inconsistent; the message names the folder.
        """
        bundle = load_for_serving(folder)
        try:
            return cls(bundle, index_threads=index_threads)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error

    def recommend(self, user_id: str, k: int) -> Recommendation:
        """Return ``min(k, unseen items)`` items for one user: the best, or nearly so with an approximate index.

        Args:
            user_id: External id. An unknown user gets the most popular items and ``source`` says so.
            k: At least 1.

        Returns:
            Items ordered by (score descending, item row ascending). Scores are inner products in float64, or counts
            of training interactions for popular items.
        """
        return self.recommend_many([Request(user_id, k)])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Answer many requests with one tower call, and over an exact index with one scan of the items.

        An approximate index is searched once for each.

        Each answer equals the one that `recommend` gives. That holds to the last bit where the tower computes each
        user's vector independently of its batch, which a tower made of gathers does.

        Args:
            requests: Any users, repeated or not.

        Returns:
            One recommendation per request, in order.
        """
        users = [self._users.find(request.user_id) for request in requests]
        known = [(user, request.k) for user, request in zip(users, requests, strict=True) if user is not None]
        ranked = iter(self.ranker.top(self.queries(known)))
        return [
            self._popular_items(request.k) if user is None else Recommendation("model", self._items(*next(ranked)))
            for user, request in zip(users, requests, strict=True)
        ]

    def queries(self, known: Sequence[tuple[int, int]]) -> list[Query]:
        """Return what the ranker is asked: the user tower's vectors and the items to leave out.

        Args:
            known: User row and number of items, of each.
        """
        if not known:
            return []
        vectors = self.tower(np.array([user for user, _ in known], dtype=np.int64))
        return [
            Query(vector, self._seen.of(user), k, self._codes and self._codes.of(user))
            for vector, (user, k) in zip(vectors, known, strict=True)
        ]

    def _popular_items(self, k: int) -> Recommendation:
        rows = self._popular[:k]
        return Recommendation("popular", self._items(rows, self._popularity[rows].astype(np.float64)))

    def _items(self, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> list[ScoredItem]:
        rows_, name = rows.tolist(), self._name
        return [
            ScoredItem(row, item_id, title, score)
            for row, (item_id, title), score in zip(rows_, map(name, rows_), scores.tolist(), strict=True)
        ]


def _cached_names(item_ids: StringTable, titles: StringTable) -> Callable[[int], tuple[str, str | None]]:
    """Return item row → id and title."""

    @lru_cache(maxsize=_NAMES)
    def name(row: int) -> tuple[str, str | None]:
        return item_ids[row], titles[row] or None

    return name
