"""What a service has to answer, by definition: brute force in NumPy over the content of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.values import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tests.helpers_bundle import Content

Answer = tuple[str, list[tuple[str, float]]]
"""A source, then ids and scores."""


class Reference:
    """Answers to requests about a content: float64 scores of all items, filtered afterwards.

    Args:
        content: What the bundle was written from.
    """

    def __init__(self, content: Content) -> None:
        self._content = content
        self._users = {name: row for row, name in enumerate(content.user_ids)}
        self._items = {name: row for row, name in enumerate(content.item_ids)}
        self._wide = content.items.astype(np.float64)

    def may_be_answered(self, request: Request) -> NDArray[np.bool_]:
        """Tell of each item whether the filters, but for the lowest score, let it through, bool [I]."""
        content, user = self._content, self._users.get(request.user_id)
        there = np.ones(len(content.items), dtype=np.bool_)
        if request.exclude_seen:
            there[self._rows(request.history)] = False
            if user is not None:
                there[content.seen[user]] = False
        there[self._rows(request.exclude)] = False
        if request.allow is not None:
            there &= np.isin(np.arange(len(there)), self._rows(request.allow))
        if request.category is not None:
            members = content.categories.rows(request.category) if content.categories else None
            there &= np.isin(np.arange(len(there)), [] if members is None else members)
        return there

    def scores(self, request: Request) -> tuple[str, NDArray[np.float64]]:
        """Return where the order comes from, and the scores of all items."""
        user, history = self._users.get(request.user_id), self._rows(request.history)
        if user is not None:
            return "model", self._products(self._content.users[user])
        if history:
            return "history", self._products(self._wide[history].mean(axis=0).astype(np.float32))
        return "popular", self._content.popularity.astype(np.float64)

    def answer(self, request: Request) -> Answer:
        """Return the whole answer to a request."""
        source, scores = self.scores(request)
        there = self.may_be_answered(request)
        if request.min_score is not None:
            there &= scores >= request.min_score
        return source, self._best(np.flatnonzero(there), scores, request.k)

    def similar(self, item_id: str, k: int) -> list[tuple[str, float]]:
        """Return the other items of the largest cosines."""
        row = self._items[item_id]
        norms = np.sqrt((self._wide * self._wide).sum(axis=1))
        products = self._products(self._content.items[row])
        cosines = np.divide(products, norms * norms[row], out=np.zeros(len(norms)), where=norms * norms[row] > 0)
        return self._best(np.delete(np.arange(len(norms)), row), cosines, k)

    def _products(self, vector: NDArray[np.float32]) -> NDArray[np.float64]:
        products: NDArray[np.float64] = (self._wide * vector.astype(np.float64)).sum(axis=1)
        return products

    def _rows(self, item_ids: Sequence[str]) -> list[int]:
        return sorted({self._items[name] for name in item_ids if name in self._items})

    def _best(self, rows: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> list[tuple[str, float]]:
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(self._content.item_ids[row], float(scores[row])) for row in order]


def draw_request(draw: np.random.Generator, content: Content, user_id: str) -> Request:
    """Draw a request of any filters for a user; every one is left out at times, ids may be unknown or repeated."""
    names = content.item_ids

    def some(most: float) -> tuple[str, ...]:
        count = int(len(names) ** (most * draw.random()))
        chosen = [names[row] for row in draw.integers(0, len(names), count)]
        return (*chosen, "no such item", chosen[0])

    categories = [*(content.categories.names if content.categories else ()), "no such category"]
    least = [None, None, float(draw.normal()), 0.0, 1.0, float(draw.integers(0, 50))]
    return Request(
        user_id,
        int(draw.choice([1, 2, 10, 10, 50, len(names) + 3])),
        exclude_seen=bool(draw.random() < 0.7),
        exclude=some(0.7) if draw.random() < 0.5 else (),
        allow=some(1.0) if draw.random() < 0.4 else None,
        category=str(draw.choice(categories)) if draw.random() < 0.4 else None,
        min_score=least[draw.integers(len(least))],
        history=some(0.5) if draw.random() < 0.5 else (),
    )
