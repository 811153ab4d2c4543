from __future__ import annotations

import math

import pytest
import torch

from benchmarks.ranking_speed import DisagreementError, check_agreement, measure, model_with_taste
from benchmarks.reference_loops import PlainVBPR
from benchmarks.reference_ranking import PlainRanking, items_by_user
from benchmarks.shapes import synthetic_dataset
from training.evaluation import DEFAULT_KS, EvaluationSet, GroupedItems, evaluate_model

DATASET = synthetic_dataset("small")


def test_both_ways_give_the_same_metrics() -> None:
    result = measure("small", rounds=2)
    assert result["metrics"] == pytest.approx(result["reference_metrics"], rel=1e-9)
    assert len(result["metrics"]) == 5 * len(DEFAULT_KS)
    assert result["ratio"] == result["seconds"]["ours"] / result["seconds"]["reference"]
    assert {name: len(times) for name, times in result["samples_seconds"].items()} == {"ours": 2, "reference": 2}


def test_the_model_makes_a_forgotten_mask_show() -> None:
    model = model_with_taste(DATASET)
    prepared = EvaluationSet.of(DATASET, "test")
    nothing = GroupedItems(torch.zeros_like(prepared.seen.offsets), prepared.seen.items[:0])
    masked, unmasked = (
        evaluate_model(model, EvaluationSet(prepared.users, prepared.truth, seen), DATASET.n_items, (20,))
        for seen in (prepared.seen, nothing)
    )
    assert masked["recall@20"] > unmasked["recall@20"] + 0.02
    assert masked["ndcg@20"] > unmasked["ndcg@20"] + 0.02


def test_the_reference_leaves_seen_items_out() -> None:
    model = model_with_taste(DATASET)
    ranked = PlainRanking(PlainVBPR(model, 1.0), DATASET, "test").lists(50)
    users = EvaluationSet.of(DATASET, "test").users.tolist()
    seen = items_by_user(DATASET, "train")
    assert len(ranked) == len(users)
    assert not any(set(items.tolist()) & set(seen[user].tolist()) for user, items in zip(users, ranked, strict=True))


def test_items_are_grouped_by_user() -> None:
    grouped = items_by_user(DATASET, "valid")
    part = DATASET.splits["valid"]
    assert len(grouped) == DATASET.n_users
    for user in (0, 7, DATASET.n_users - 1):
        assert grouped[user].tolist() == part.items[part.users == user].tolist()


@pytest.mark.parametrize("other", [0.1403, 0.0, math.nan])
def test_different_metrics_void_the_comparison(other: float) -> None:
    good = {"recall@20": 0.14, "ndcg@20": 0.08}
    check_agreement(good, {**good, "recall@20": 0.1401})
    with pytest.raises(DisagreementError, match=r"void: recall@20 is 0\.140000"):
        check_agreement(good, {**good, "recall@20": other})
