"""One bundle, ready to answer: user id in, recommended items out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from export.bundle import INDEX
from export.index_search import sample_users
from export.serving import load_for_serving
from service.retrieval.catalogue import Catalogue
from service.retrieval.popular import Popular
from service.retrieval.ranking import Query, Ranker
from service.retrieval.rows import NO_ROWS, union
from service.retrieval.scores import Ranked
from service.retrieval.tower import UserTower
from service.values import Recommendation, Request
from training.common.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.serving import ServingBundle
    from service.values import DescribedItem, KnownItem, ScoredItems, Source

_LOOKS = (64, 1024)
"""Users that an approximate index is tried with: few at first, more before it is refused, for few may be unlucky."""
_RECALL_SLACK = 0.1
_PLAIN = Request("", 1)[2:]
"""What a request asks for besides a user and a number, where it asks for nothing."""


class Engine:
    """Recommendations from one verified bundle, by one thread at a time; what is looked up, by any besides it.

    Scores are exact; items too, unless the bundle's index is approximate: then as many of the best as its manifest's
    recall says.

    Args:
        bundle: What `export.serving.load_for_serving` returned.
        index_threads: Threads of one scan of the items, in ONNX Runtime, and of one index search, in FAISS.

    Attributes:
        manifest: The bundle's self-description.
        categories: Names that a request's category can have, sorted; none where the data set has none.
        certificate: The bundle's certificate, a JSON document.
        tower: User rows to vectors.
        ranker: Vectors and seen items to the best items.
        providers: Of each ONNX Runtime session, ``user_tower`` and, where items are scanned, ``scan``: what it really
            got to compute with, as `InferenceSession.get_providers` says.

    Raises:
        BundleError: The graph or the index cannot be loaded or does not fit the rest of the bundle, or the index finds
            far less than the manifest says.
    """

    def __init__(self, bundle: ServingBundle, *, index_threads: int = 1) -> None:
        self.manifest = bundle.manifest
        self._users = bundle.users
        self._users.find("")  # prepares the table for the first request
        self._seen = bundle.seen
        self._popular = Popular(bundle.popularity)
        self._catalogue = Catalogue(bundle)
        self.categories = self._catalogue.categories
        self.certificate = bundle.certificate
        self.tower = UserTower(bundle.user_tower, len(bundle.users), bundle.manifest.dimension)
        self.ranker = Ranker(
            bundle.index,
            bundle.manifest.index,
            bundle.items,
            largest_user_norm=self.tower.largest_norm,
            threads=index_threads,
        )
        self.providers = {"user_tower": self.tower.providers}
        if self.ranker.providers:
            self.providers["scan"] = self.ranker.providers
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
            One recommendation per request, in order, each with ``k`` items if so many are left to choose from.
        """
        for request in requests:
            if request[2:] != _PLAIN:
                return self._recommend_filtered(requests)
        users = [self._users.find(request.user_id) for request in requests]
        known = [(user, request.k) for user, request in zip(users, requests, strict=True) if user is not None]
        ranked = iter(self.ranker.top(self.queries(known)))
        popular, scored = self._popular, self._catalogue.scored
        return [
            Recommendation("popular", scored(popular.top(request.k)))
            if user is None
            else Recommendation("model", scored(next(ranked)))
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

    def _recommend_filtered(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Answer requests of which some ask for more than a user and a number."""
        users = [self._users.find(request.user_id) for request in requests]
        known = iter(self.queries([(user, r.k) for user, r in zip(users, requests, strict=True) if user is not None]))
        asked = [
            self._asked(request, None if user is None else next(known))
            for request, user in zip(requests, users, strict=True)
        ]
        ranked = iter(self.ranker.top([query for _, query in asked if isinstance(query, Query)]))
        return [
            self._answer(source, next(ranked) if isinstance(query, Query) else query, request.min_score)
            for request, (source, query) in zip(requests, asked, strict=True)
        ]

    def _asked(self, request: Request, known: Query | None) -> tuple[Source, Query | Ranked]:
        """Return what a request is answered from and what the ranker is asked, or the answer that needs no ranker.

        Args:
            request: The request.
            known: What would be asked for a user of the bundle without filters; None for an unknown user.
        """
        history = self._catalogue.rows(request.history)
        left_out = [self._catalogue.rows(request.exclude)]
        if request.exclude_seen:
            left_out += [history, known.seen if known else NO_ROWS]
        seen, among = union(left_out), self._catalogue.among(request.allow, request.category)
        if known:
            return "model", known._replace(seen=seen, among=among)
        if len(history):
            return "history", Query(self.ranker.mean(history), seen, request.k, among=among)
        return "popular", self._popular.top(request.k, seen, among)

    def _answer(self, source: Source, ranked: Ranked, min_score: float | None = None) -> Recommendation:
        if min_score is not None:
            enough = int((ranked.scores >= min_score).sum())
            ranked = Ranked(ranked.rows[:enough], ranked.scores[:enough])
        return Recommendation(source, self._catalogue.scored(ranked))

    def similar(self, item_id: str, k: int) -> ScoredItems | None:
        """Return the ``min(k, I - 1)`` other items most like one item, or nearly so with an approximate index.

        Args:
            item_id: External id.
            k: At least 1.

        Returns:
            Items ordered by (score descending, item row ascending); scores are cosines of the item vectors in float64.
            None for an unknown item.
        """
        row = self._catalogue.find(item_id)
        return None if row is None else self._catalogue.scored(self.ranker.similar.top(row, k))

    def items(self, item_ids: Sequence[str]) -> list[DescribedItem]:
        """Return those of some items that are known, with their categories, by ascending row."""
        return self._catalogue.described(self._catalogue.rows(item_ids))

    def some_users(self, count: int) -> list[str]:
        """Return the ids of ``count`` users with training items, fewer where fewer are there.

        They are spread evenly over the rows and are always the same ones.
        """
        known = np.flatnonzero(np.diff(self._seen.offsets))
        places = np.linspace(0, len(known), min(count, len(known)), endpoint=False).astype(np.int64)
        return [self._users[user] for user in known[places].tolist()]

    def history(self, user_id: str) -> list[KnownItem] | None:
        """Return the items that a user has interacted with in training, by ascending row; None for an unknown user."""
        user = self._users.find(user_id)
        return None if user is None else self._catalogue.known(self._seen.of(user))
