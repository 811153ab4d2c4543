from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers_training import make_dataset, planted_blocks
from training import evaluation
from training.common.errors import ConfigError, DataError
from training.data.dataset import Dataset, Interactions, Split
from training.evaluation import (
    EvaluationSet,
    GroupedItems,
    Scorer,
    evaluate,
    metrics_per_user,
    popularity_scorer,
    top_k,
    vector_scorer,
)


def slow_metrics(hits: list[bool], relevant: int, k: int) -> dict[str, float]:
    """The definitions of spec §1.7, one user at a time."""
    found = 0
    gain = precision_sum = 0.0
    for rank, hit in enumerate(hits[:k], start=1):
        if hit:
            found += 1
            gain += 1 / math.log2(rank + 1)
            precision_sum += found / rank
    best = min(k, relevant, len(hits))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return {
        f"recall@{k}": found / relevant,
        f"ndcg@{k}": gain / ideal,
        f"precision@{k}": found / k,
        f"map@{k}": precision_sum / best,
        f"hr@{k}": float(found > 0),
    }


def table_scorer(table: Tensor) -> Scorer:
    return lambda users: table[users].clone()


def random_scores(dataset: Dataset, seed: int = 0) -> Tensor:
    return torch.randn(dataset.n_users, dataset.n_items, generator=torch.Generator().manual_seed(seed))


L2, L3, L4 = (1 / math.log2(rank + 1) for rank in (2, 3, 4))


@pytest.mark.parametrize(
    ("hits", "relevant", "k", "expected"),
    [
        # One of two relevant items found, at rank 1.
        ("1000", 2, 4, {"recall": 1 / 2, "ndcg": 1 / (1 + L2), "precision": 1 / 4, "map": 1 / 2, "hr": 1}),
        # Ranks 1 and 3 of three relevant: precisions 1 and 2/3.
        ("1010", 3, 4, {"recall": 2 / 3, "ndcg": (1 + L3) / (1 + L2 + L3), "precision": 2 / 4, "map": 5 / 9, "hr": 1}),
        # More relevant items than the list is long: recall keeps G, NDCG and MAP are cut to k.
        ("1101", 9, 4, {"recall": 3 / 9, "ndcg": (1 + L2 + L4) / (1 + L2 + L3 + L4), "map": 2.75 / 4, "hr": 1}),
        # The same list cut after two: only the first two ranks count.
        ("1101", 9, 2, {"recall": 2 / 9, "ndcg": 1, "precision": 1, "map": 1, "hr": 1}),
        # Fewer relevant items than k: a perfect list ends with misses and is still perfect, but for precision.
        ("1100", 2, 4, {"recall": 1, "ndcg": 1, "precision": 1 / 2, "map": 1, "hr": 1}),
        ("0000", 3, 4, {"recall": 0, "ndcg": 0, "precision": 0, "map": 0, "hr": 0}),
        # A hit below the cut-off is no hit.
        ("0001", 1, 3, {"recall": 0, "ndcg": 0, "precision": 0, "map": 0, "hr": 0}),
        ("0001", 1, 4, {"recall": 1, "ndcg": L4, "precision": 1 / 4, "map": 1 / 4, "hr": 1}),
    ],
)
def test_hand_computed(hits: str, relevant: int, k: int, expected: dict[str, float]) -> None:
    result = metrics_per_user(torch.tensor([[c == "1" for c in hits]]), torch.tensor([relevant]), [k])
    for name, value in expected.items():
        assert result[f"{name}@{k}"].item() == pytest.approx(value, abs=1e-12), name


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[bool]], list[int]]:
    length = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=6))
    return rows, [max(1, sum(row)) + draw(st.integers(0, 15)) for row in rows]


@given(rankings())
def test_vectorised_metrics_equal_the_slow_definition(case: tuple[list[list[bool]], list[int]]) -> None:
    rows, relevant = case
    ks = range(1, len(rows[0]) + 1)
    result = metrics_per_user(torch.tensor(rows), torch.tensor(relevant), ks)
    assert len(result) == 5 * len(ks)
    for k in ks:
        for position, (row, count) in enumerate(zip(rows, relevant, strict=True)):
            for name, value in slow_metrics(row, count, k).items():
                assert result[name][position].item() == pytest.approx(value, abs=1e-12), (name, row, count)


@given(rankings())
def test_metrics_stay_between_zero_and_one_and_hits_never_hurt(case: tuple[list[list[bool]], list[int]]) -> None:
    hits, relevant = torch.tensor(case[0]), torch.tensor(case[1])
    before = metrics_per_user(hits, relevant, [hits.shape[1]])
    better = hits.clone()
    better[:, 0] = True
    after = metrics_per_user(better, relevant.clamp_min(better.sum(1)), [hits.shape[1]])
    for name, values in before.items():
        assert bool(((values >= 0) & (values <= 1 + 1e-12)).all()), name
        if not name.startswith("recall"):  # recall's denominator may grow with the planted hit
            unchanged = relevant >= better.sum(1)
            assert bool((after[name] >= values - 1e-12)[unchanged].all()), name


@pytest.mark.parametrize("split", ["valid", "test"])
def test_top_k_equals_a_brute_force_sort(split: Split) -> None:
    dataset = planted_blocks(n_users=10, n_items=50)
    scores = random_scores(dataset)
    data = EvaluationSet.of(dataset, split)
    lists, hits = top_k(table_scorer(scores), data, dataset.n_items, 20)
    train = set(zip(dataset.train.users.tolist(), dataset.train.items.tolist(), strict=True))
    part = dataset.splits[split]
    truth = set(zip(part.users.tolist(), part.items.tolist(), strict=True))
    for position, user in enumerate(data.users.tolist()):
        unseen = [item for item in range(dataset.n_items) if (user, item) not in train]
        expected = sorted(unseen, key=lambda item: -float(scores[user, item]))[:20]
        assert lists[position].tolist() == expected
        assert hits[position].tolist() == [(user, item) in truth for item in expected]


def test_training_items_are_masked_and_validation_items_are_not() -> None:
    dataset = make_dataset([(0, 0), (0, 1)], [(0, 2)], [(0, 3)], n_users=1, n_items=5)
    best_first = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    lists, hits = top_k(table_scorer(best_first), EvaluationSet.of(dataset, "test"), 5, 3)
    assert lists.tolist() == [[2, 3, 4]]  # 0 and 1 are training items; 2, a validation item, stays
    assert hits.tolist() == [[False, True, False]]


def test_masked_items_are_no_hits_even_when_the_list_is_too_long() -> None:
    # Item 0 is both a training and a test item: it can only stand at the end of the list, and never as a hit.
    dataset = make_dataset([(0, 0), (0, 1)], [(0, 2)], [(0, 0), (0, 3)], n_users=1, n_items=4)
    lists, hits = top_k(table_scorer(torch.tensor([[4.0, 3.0, 2.0, 1.0]])), EvaluationSet.of(dataset, "test"), 4, 4)
    assert lists[0, :2].tolist() == [2, 3]
    assert sorted(lists[0, 2:].tolist()) == [0, 1]
    assert hits.tolist() == [[False, True, False, False]]


def test_users_without_a_training_row_are_left_out() -> None:
    dataset = make_dataset([(0, 0), (2, 1)], [(1, 1), (2, 0)], [(0, 1), (1, 0)], n_users=4, n_items=3)
    assert EvaluationSet.of(dataset, "valid").users.tolist() == [2]
    assert EvaluationSet.of(dataset, "test").users.tolist() == [0]


def test_a_split_with_cold_users_only_is_refused() -> None:
    dataset = make_dataset([(0, 0)], [(0, 1)], [(1, 1)], n_users=2, n_items=3)
    with pytest.raises(DataError, match="tiny: no user of the test split has a training interaction"):
        EvaluationSet.of(dataset, "test")


def test_items_outside_training_are_ranked_and_count_as_relevant() -> None:
    dataset = make_dataset([(0, 0)], [(0, 1)], [(0, 2), (0, 3)], n_users=1, n_items=4)
    scorer = table_scorer(torch.tensor([[0.0, 0.1, 9.0, 0.0]]))
    metrics = evaluate(scorer, EvaluationSet.of(dataset, "test"), 4, [1, 2])
    assert metrics["recall@1"] == 0.5
    assert metrics["precision@1"] == 1


def test_means_weigh_every_user_the_same() -> None:
    train = [(0, 0), (1, 0)]
    test = [(0, 1), (1, 1), (1, 2), (1, 3)]
    dataset = make_dataset(train, [(0, 4)], test, n_users=2, n_items=6)
    # User 0 finds its one item first, user 1 none of its three.
    scores = torch.tensor([[0.0, 9, 1, 1, 1, 1], [0.0, 1, 1, 1, 9, 8]])
    metrics = evaluate(table_scorer(scores), EvaluationSet.of(dataset, "test"), 6, [1, 2])
    assert metrics["recall@1"] == 0.5
    assert metrics["hr@2"] == 0.5


@pytest.mark.parametrize("block", [1, 7, 130, 10**9])
def test_results_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    dataset = planted_blocks()
    scores, data = random_scores(dataset), EvaluationSet.of(dataset, "test")
    whole = top_k(table_scorer(scores), data, dataset.n_items, 30)
    monkeypatch.setattr(evaluation, "_BLOCK_SCORES", block)
    sizes: list[int] = []

    def scorer(users: Tensor) -> Tensor:
        sizes.append(len(users))
        return scores[users].clone()

    parts = top_k(scorer, data, dataset.n_items, 30)
    assert max(sizes) == min(len(data.users), max(1, block // dataset.n_items))
    assert all(torch.equal(left, right) for left, right in zip(whole, parts, strict=True))


def test_evaluation_does_not_depend_on_the_order_of_interactions() -> None:
    dataset = planted_blocks()
    scorer = table_scorer(random_scores(dataset))
    flipped = make_dataset(
        *(
            list(zip(part.users[::-1].tolist(), part.items[::-1].tolist(), strict=True))
            for part in dataset.splits.values()
        ),
        n_users=dataset.n_users,
        n_items=dataset.n_items,
    )
    results = [evaluate(scorer, EvaluationSet.of(data, "test"), data.n_items) for data in (dataset, flipped)]
    assert results[0] == results[1]


def test_popularity_ranks_by_training_counts_and_ties_go_to_the_earlier_row() -> None:
    train = [(0, 5), (1, 5), (2, 5), (0, 2), (1, 2), (0, 4), (1, 4), (2, 1), (3, 0)]
    # Validation and test interactions do not count: item 3 stays last with item 6.
    dataset = make_dataset(train, [(0, 3), (1, 3)], [(3, 3), (2, 3)], n_users=4, n_items=7)
    lists, _ = top_k(popularity_scorer(dataset), EvaluationSet.of(dataset, "test"), 7, 4)
    counts = [sum(item == other for _, other in train) for item in range(7)]
    for user, ranking in zip([2, 3], lists.tolist(), strict=True):
        unseen = [item for item in range(7) if (user, item) not in train]
        assert ranking == sorted(unseen, key=lambda item: (-counts[item], item))[:4]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=40),
    st.lists(st.integers(0, 5), max_size=8),
)
def test_grouped_items_equal_a_dictionary(pairs: list[tuple[int, int]], asked: list[int]) -> None:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    grouped = GroupedItems.of(Interactions(table[:, 0].copy(), table[:, 1].copy()), 6)
    positions, items = grouped.cells(torch.tensor(asked, dtype=torch.int64))
    expected = [
        (place, item) for place, user in enumerate(asked) for item in sorted({i for u, i in pairs if u == user})
    ]
    assert list(zip(positions.tolist(), items.tolist(), strict=True)) == expected


def test_vector_scorer_is_the_inner_product() -> None:
    users, items = torch.randn(5, 3), torch.randn(4, 3)
    scores = vector_scorer(users, items)(torch.tensor([4, 0, 4]))
    for row, user in enumerate([4, 0, 4]):
        for item in range(4):
            exact = sum(float(users[user, d]) * float(items[item, d]) for d in range(3))
            assert scores[row, item].item() == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("make", [popularity_scorer, lambda _: vector_scorer(torch.ones(3, 1), torch.ones(3, 1))])
def test_ranking_twice_gives_the_same(make: Callable[[Dataset], Scorer]) -> None:
    # top_k writes the mask into the scores: they must be a fresh tensor each time.
    dataset = make_dataset([(0, 0), (1, 1), (2, 2)], [(0, 1)], [(0, 2), (1, 2), (2, 0)], n_users=3, n_items=3)
    scorer, data = make(dataset), EvaluationSet.of(dataset, "test")
    assert evaluate(scorer, data, 3, [1, 2]) == evaluate(scorer, data, 3, [1, 2])


def test_cut_offs_beyond_the_catalogue() -> None:
    dataset = make_dataset([(0, 0)], [(0, 1)], [(0, 2)], n_users=1, n_items=3)
    data, scorer = EvaluationSet.of(dataset, "test"), popularity_scorer(dataset)
    assert {name.split("@")[1] for name in evaluate(scorer, data, 3, [2, 3, 4])} == {"2", "3"}
    with pytest.raises(ConfigError, match=r"every cut-off of \[5, 10\] exceeds the catalogue of 3 items"):
        evaluate(scorer, data, 3, [5, 10])
