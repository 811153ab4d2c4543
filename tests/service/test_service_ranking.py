"""With an exact index every answer is the exact one, however the vectors lie, and however it is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.retrieval.ranking import Query, Ranker, _kth_largest
from service.retrieval.scan import NEVER, ScanError
from service.retrieval.scores import Ranked
from tests.helpers_bundle import flat_index
from tests.helpers_index import entry_of
from tests.service.vectors import KINDS, draw_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def ranker(items: NDArray[np.float32], users: NDArray[np.float32], threads: int = 1) -> Ranker:
    norm = float(np.linalg.norm(users.astype(np.float64), axis=1).max())
    index = memoryview(flat_index(items))
    return Ranker(index, entry_of("Flat"), items, largest_user_norm=norm, threads=threads)


def brute_force(items: NDArray[np.float32], query: Query) -> Ranked:
    """The definition: float64 scores, unseen rows, (score descending, row ascending)."""
    scores = (items.astype(np.float64) * query.vector.astype(np.float64)).sum(axis=1)
    unseen = np.setdiff1d(np.arange(len(items)) if query.among is None else query.among, query.seen)
    rows = unseen[np.lexsort((unseen, -scores[unseen]))][: query.k]
    return Ranked(rows, scores[rows])


def check(items: NDArray[np.float32], queries: Sequence[Query], answers: Sequence[Ranked]) -> None:
    for query, answer in zip(queries, answers, strict=True):
        wanted = brute_force(items, query)
        np.testing.assert_array_equal(answer.rows, wanted.rows)
        np.testing.assert_array_equal(answer.scores, wanted.scores)


def questions(items: NDArray[np.float32], users: NDArray[np.float32], seed: int) -> list[Query]:
    """Ask for one, few, many and too many items, of users who have seen none, some, the best, nearly all or all.

    One question in four is about a part of the items: none of them, one, half or all.
    """
    draw = np.random.default_rng(seed)
    n_items = len(items)
    queries = []
    for user in users:
        best = np.argsort(-(items.astype(np.float64) @ user.astype(np.float64)))
        most = np.arange(n_items)
        for seen in (most[:0], most[draw.random(n_items) < 0.3], best[: n_items // 3], np.delete(most, -1), most):
            queries += [Query(user, np.sort(seen).astype(np.int32), k) for k in (1, 2, 10, n_items, n_items + 5)]
    for number in range(0, len(queries), 4):
        part = most[draw.random(n_items) < draw.choice([0, 1 / n_items, 0.5, 1])].astype(np.int32)
        queries[number] = queries[number]._replace(among=part)
    return queries


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_items=st.integers(1, 70),
    dimension=st.sampled_from([1, 2, 7, 33, 128]),
    seed=st.integers(0, 2**32 - 1),
)
def test_small_catalogues(kind: str, n_items: int, dimension: int, seed: int) -> None:
    items, users = draw_vectors(kind, n_items, 3, dimension, seed)
    opened = ranker(items, users)
    assert opened._scan is not None
    queries = questions(items, users, seed)
    check(items, queries, opened.top(queries))
    check(items, queries, [opened.top([query])[0] for query in queries])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_items", "dimension"), [(4200, 16), (900, 2000), (1500, 1)])
def test_larger_catalogues(kind: str, n_items: int, dimension: int) -> None:
    items, users = draw_vectors(kind, n_items, 2, dimension, 5)
    opened = ranker(items, users)
    queries = questions(items, users, 6)
    check(items, queries, opened.top(queries))


@settings(max_examples=200, deadline=None)
@given(
    sums=st.lists(st.integers(-9, 9) | st.just(10**6) | st.just(int(NEVER)), min_size=1, max_size=300),
    k=st.integers(1, 20),
)
@example(sums=[5 if place % 16 == 3 else int(NEVER) for place in range(64)], k=2)  # all in one group
def test_a_lower_bound_of_the_kth_best_sum(sums: list[int], k: int) -> None:
    there = [value for value in sums if value > NEVER]
    if len(there) > k:
        assert NEVER < _kth_largest(np.array(sums, dtype=np.int32), k) <= sorted(there)[-k]


def misleading() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The best item's sum is nearly two errors below that of the next best.

    Row 0 is rounded down in all dimensions but one, row 1 is rounded up everywhere.
    """
    dimension = 32
    items = np.full((dimension + 3, dimension), -127, dtype=np.float32)
    items[0], items[0, 0], items[1] = 10.49, 11.4, 10.5001
    for other in range(dimension):  # the range of every dimension is from -127 to 127
        items[2 + other, other] = 127
    return items, np.ones((1, dimension), dtype=np.float32)


def test_the_best_item_is_found_where_its_sum_is_misleading() -> None:
    items, users = misleading()
    opened = ranker(items, users)
    assert opened._scan is not None
    sums = opened._scan([opened._scan.encode(users).levels[0]])[0].tolist()
    assert sums[1] - sums[0] > 3900
    (answer,) = opened.top([Query(users[0], np.empty(0, np.int32), 1)])
    assert answer.rows.tolist() == [0]


@pytest.mark.parametrize("threads", [1, 2])
def test_codes_made_beforehand_give_the_same_answers(threads: int) -> None:
    items, users = draw_vectors("normal", 3000, 70, 24, 1)
    opened = ranker(items, users, threads)
    codes = opened.encode([users[:40], users[40:]])
    assert codes is not None
    seen = np.arange(5, 3000, 90, dtype=np.int32)
    queries = [Query(user, seen, 10, codes.of(position)) for position, user in enumerate(users)]
    check(items, queries, opened.top(queries))
    check(items, queries, opened.top([query._replace(code=None) for query in queries]))


def counted(opened: Ranker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    searches: list[int] = []
    search = opened._searcher._search

    def count(vectors: NDArray[np.float32], fetch: int) -> object:
        searches.append(len(vectors))
        return search(vectors, fetch)

    monkeypatch.setattr(opened._searcher, "_search", count)
    return searches


def test_the_index_is_searched_only_where_the_scan_leaves_many_but_not_most(monkeypatch: pytest.MonkeyPatch) -> None:
    items, users = draw_vectors("normal", 5000, 6, 16, 3)
    items[::4] = items[0]  # as many items as a quarter share a score
    users[2] = users[4] = items[0]
    users[5] = 0  # all scores are equal
    opened = ranker(items, users)
    searches = counted(opened, monkeypatch)
    queries = [Query(user, np.array([0, 3], dtype=np.int32), 10) for user in users]
    check(items, queries, opened.top(queries))
    assert searches[0] == 2
    del searches[:]
    check(items, [*queries[:2], queries[5]], opened.top([*queries[:2], queries[5]]))
    assert searches == []


def test_a_machine_that_cannot_scan_searches_the_index_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ScanError("not on this machine")

    items, users = draw_vectors("normal", 700, 16, 16, 3)
    monkeypatch.setattr("service.retrieval.ranking.Scan", refuse)
    opened = ranker(items, users)
    assert "exactly but more slowly: not on this machine" in caplog.text
    assert opened.encode([users]) is None
    searches = counted(opened, monkeypatch)
    queries = [Query(user, np.array([0, 3], dtype=np.int32), 10) for user in users]
    check(items, queries, opened.top(queries))
    assert searches == [16]


def test_an_exact_index_is_the_only_copy_of_the_items() -> None:
    items, users = draw_vectors("normal", 100, 2, 8, 3)
    kept = items.copy()
    opened = ranker(items, users)
    items[:] = 0
    query = Query(users[0], np.empty(0, np.int32), 10)
    check(kept, [query], opened.top([query]))
