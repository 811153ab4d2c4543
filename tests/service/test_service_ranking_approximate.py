"""An approximate index proposes; scores, order, seen items and the number of items are as with an exact one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from service.retrieval.ranking import Query, Ranker
from tests.helpers_bundle import make_content
from tests.helpers_index import SERVED, entry_of, faiss_index, serialised

if TYPE_CHECKING:
    from tests.helpers_bundle import Content

CONTENT = make_content(n_users=20, n_items=300, dimension=8, seen_share=0.1, seed=4)
APPROXIMATE = [factory for factory in SERVED if factory != "Flat"]


def ranker(factory: str, content: Content = CONTENT, threads: int = 1, **search: int) -> Ranker:
    data = serialised(faiss_index(factory, content.items))
    norm = float(np.linalg.norm(content.users, axis=1).max())
    entry = entry_of(factory, **search)
    return Ranker(memoryview(data), entry, content.items, largest_user_norm=norm, threads=threads)


def queries(*ks: int) -> list[Query]:
    return [Query(vector, seen, k) for vector, seen in zip(CONTENT.users, CONTENT.seen, strict=True) for k in ks]


@pytest.mark.parametrize("factory", APPROXIMATE)
def test_every_answer_is_whole_unseen_exactly_scored_and_in_order(factory: str) -> None:
    asked = queries(1, 10, 100, 1000)
    for query, answer in zip(asked, ranker(factory).top(asked), strict=True):
        unseen = np.setdiff1d(np.arange(len(CONTENT.items)), query.seen)
        assert len(answer.rows) == min(query.k, len(unseen))
        assert len(np.unique(answer.rows)) == len(answer.rows)
        assert np.isin(answer.rows, unseen).all()
        exact = (CONTENT.items.astype(np.float64) * query.vector.astype(np.float64)).sum(axis=1)
        np.testing.assert_array_equal(answer.scores, exact[answer.rows])
        in_order = np.lexsort((answer.rows, -answer.scores))
        np.testing.assert_array_equal(in_order, np.arange(len(in_order)))


@pytest.mark.parametrize("factory", APPROXIMATE)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_query_is_answered_alike_alone_and_in_any_batch(factory: str, threads: int) -> None:
    opened = ranker(factory, threads=threads)
    asked = queries(3, 10, 40)
    together = opened.top(asked)
    backwards = opened.top(asked[::-1])[::-1]
    for query, one, other in zip(asked, together, backwards, strict=True):
        alone = opened.top([query])[0]
        for answer in (one, other):
            np.testing.assert_array_equal(answer.rows, alone.rows)
            np.testing.assert_array_equal(answer.scores, alone.scores)


@pytest.mark.parametrize(
    ("factory", "search"),
    [
        ("IVF6,Flat", {"nprobe": 6, "overfetch": 1}),
        ("HNSW4,Flat", {"efSearch": 300, "overfetch": 1}),
        ("SQ4", {"overfetch": 300}),
        ("IVF6,PQ4x4", {"nprobe": 6, "overfetch": 300}),
    ],
)
def test_a_thorough_search_is_the_exact_one(factory: str, search: dict[str, int]) -> None:
    asked = queries(1, 10)
    exact = ranker("Flat").top(asked)
    same = [
        np.array_equal(a.scores, b.scores)
        for a, b in zip(exact, ranker(factory, CONTENT, 1, **search).top(asked), strict=True)
    ]
    assert sum(same) >= 0.95 * len(same)


def test_too_few_candidates_lead_to_the_exact_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred lists of an item or two, one of them probed: hardly ever enough for ten."""
    asked = queries(10)
    opened = ranker("IVF200,Flat", nprobe=1, overfetch=1)
    for one, other in zip(ranker("Flat").top(asked), opened.top(asked), strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)


def test_seen_items_do_not_use_up_the_candidates() -> None:
    """A user who has seen just the best of the catalogue still gets the next best without an exhaustive search."""
    vector = CONTENT.users[5]
    order = np.argsort(-(CONTENT.items @ vector))
    seen = np.sort(order[:60]).astype(np.int32)
    opened = ranker("IVF6,Flat", nprobe=6, overfetch=1)
    opened._searcher.all = None  # type: ignore[method-assign, assignment]
    answer = opened.top([Query(vector, seen, 10)])[0]
    # Scores, not rows: where items are equal, either may be among the candidates.
    np.testing.assert_array_equal(answer.scores, ranker("Flat").top([Query(vector, seen, 10)])[0].scores)
