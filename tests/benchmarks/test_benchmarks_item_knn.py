from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.item_knn import choose_item_knn, interaction_matrix, item_knn_scorer, neighbours
from tests.helpers_training import make_dataset, planted_blocks
from training.data.dataset import Dataset
from training.evaluation import EvaluationSet, evaluate

HALF = 0.5**0.5


def by_hand() -> Dataset:
    """Items 0 and 1 share user 0, items 1 and 2 share user 1, item 3 has user 2 alone, item 4 nobody.

    Similarities: s01 = 1/√(1·2), s12 = 1/√(2·1), all others zero.
    """
    return make_dataset([(0, 0), (0, 1), (1, 1), (1, 2), (2, 3)], [(0, 2)], [(1, 0)], n_users=3, n_items=5)


def test_similarities_by_hand() -> None:
    found = neighbours(interaction_matrix(by_hand()), 10).toarray()
    wanted = np.zeros((5, 5))
    wanted[0, 1] = wanted[1, 0] = wanted[1, 2] = wanted[2, 1] = HALF
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_only_the_nearest_count_and_ties_go_to_the_earlier_row() -> None:
    found = neighbours(interaction_matrix(by_hand()), 1).toarray()
    assert np.flatnonzero(found[1]).tolist() == [0]  # item 1 is as near to item 2
    assert np.flatnonzero(found[2]).tolist() == [1]


def test_scores_are_sums_over_the_users_items() -> None:
    scores = item_knn_scorer(by_hand(), 10)(torch.tensor([1, 0, 2]))
    wanted = torch.tensor([[HALF, HALF, HALF, 0, 0], [HALF, HALF, HALF, 0, 0], [0, 0, 0, 0, 0]])
    torch.testing.assert_close(scores, wanted)
    # With one neighbour each, item 1 listens to item 0 only: user 1 has items 1 and 2, so item 1 gets nothing.
    assert item_knn_scorer(by_hand(), 1)(torch.tensor([1]))[0].tolist() == pytest.approx([HALF, 0, HALF, 0, 0])


def test_a_pair_that_occurs_twice_counts_once() -> None:
    twice = make_dataset([(0, 0), (0, 1), (0, 1), (1, 1), (1, 2), (2, 3)], [(0, 2)], [(1, 0)], n_users=3, n_items=5)
    for k in (1, 10):
        left = neighbours(interaction_matrix(twice), k).toarray()
        np.testing.assert_array_equal(left, neighbours(interaction_matrix(by_hand()), k).toarray())


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equals_brute_force_in_blocks(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.item_knn._ROWS", 7)
    dataset = planted_blocks()
    matrix = interaction_matrix(dataset).toarray()
    found = neighbours(interaction_matrix(dataset), k).toarray()
    norms = np.sqrt((matrix**2).sum(0))
    for item in range(dataset.n_items):
        similarity = matrix.T @ matrix[:, item] / (norms * norms[item])
        similarity[item] = 0
        best = np.sort(similarity)[::-1][:k]
        np.testing.assert_allclose(np.sort(found[item])[::-1][:k], best, rtol=1e-12)
        chosen = np.flatnonzero(found[item])
        np.testing.assert_allclose(found[item][chosen], similarity[chosen], rtol=1e-12)


def test_it_finds_planted_blocks() -> None:
    dataset = planted_blocks()
    chosen = choose_item_knn(dataset, (5, 10), "recall@10", (3, 10, 30))
    assert chosen.k == max(chosen.valid, key=lambda k: (chosen.valid[k], -k))
    valid = evaluate(item_knn_scorer(dataset, chosen.k), EvaluationSet.of(dataset, "valid"), dataset.n_items, (10,))
    assert chosen.valid[chosen.k] == valid["recall@10"]
    # A user's block has 30 items, 12 of them seen: three right ones are among 18 instead of among 48.
    assert chosen.test["recall@10"] > 0.4
