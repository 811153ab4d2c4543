"""End to end: the service's engine over a built bundle against brute force on torch's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export import strip
from service.engine import Engine
from training.checkpoint import load_checkpoint
from training.data.dataset import Dataset


@pytest.mark.parametrize("variant", ["baseline", "adaptive"])
def test_the_engine_answers_as_torch_scores(variant: str, request: pytest.FixtureRequest, dataset: Dataset) -> None:
    folder: Path = request.getfixturevalue(f"{variant}_bundle")
    run: Path = request.getfixturevalue(f"{variant}_run")
    model = strip.trained_objective(load_checkpoint(run)).model
    with torch.no_grad():
        users, items = model.vectors()
        scores = (users @ items.T).numpy().astype(np.float64)
    train = dataset.train
    unseen = scores.copy()
    unseen[train.users, train.items] = -np.inf
    engine = Engine.load(folder)
    assert engine.manifest.variant == ("none" if variant == "baseline" else variant)
    for user in range(dataset.n_users):
        answer = engine.recommend(dataset.user_ids[user], 10)
        assert answer.source == "model"
        rows = [item.row for item in answer.items]
        assert len(set(rows)) == 10
        assert not set(rows) & set(train.items[train.users == user].tolist())
        assert [item.item_id for item in answer.items] == [dataset.item_ids[row] for row in rows]
        assert [item.title for item in answer.items] == [dataset.titles[row] or None for row in rows]
        allowed = 2e-6 * np.abs(scores[user]).max()
        np.testing.assert_allclose([item.score for item in answer.items], scores[user, rows], rtol=0, atol=allowed)
        # Rank by rank the score is the best there is: the same items, but for ties.
        np.testing.assert_allclose(scores[user, rows], -np.sort(-unseen[user])[:10], rtol=0, atol=allowed)


def test_an_unknown_user_gets_the_items_most_trained_on(adaptive_bundle: Path, dataset: Dataset) -> None:
    answer = Engine.load(adaptive_bundle).recommend("nobody", 5)
    counts = np.bincount(dataset.train.items, minlength=dataset.n_items)
    expected = np.lexsort((np.arange(dataset.n_items), -counts))[:5]
    assert answer.source == "popular"
    assert [item.row for item in answer.items] == expected.tolist()
    assert [item.score for item in answer.items] == counts[expected].tolist()


def test_all_unseen_items_are_served_when_more_are_asked_for(adaptive_bundle: Path, dataset: Dataset) -> None:
    answer = Engine.load(adaptive_bundle).recommend(dataset.user_ids[0], 1000)
    assert len(answer.items) == dataset.n_items - int((dataset.train.users == 0).sum())
