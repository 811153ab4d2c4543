"""On real interactions and categories, every reply equals brute force in NumPy: ids, order and scores.

The vectors are made in a second and not trained: an item's is the sum of random ones of its users, a user's the mean of
his items'. So vectors lie as trained ones do, popular items are long, and those that nobody has seen are all zeros.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from service.engine import Engine
from tests.helpers_bundle import Content, write_bundle
from tests.service.reference import Reference, draw_request
from training.data.dataset import Dataset
from training.data.fetch import cache_folder
from training.data.load import load_dataset
from training.data.options import DataOptions

DIMENSION = 32


def content_of(data: Dataset) -> Content:
    train, draw = data.train, np.random.default_rng(0)
    items = np.zeros((data.n_items, DIMENSION))
    np.add.at(items, train.items, draw.standard_normal((data.n_users, DIMENSION))[train.users])
    users = np.zeros((data.n_users, DIMENSION))
    np.add.at(users, train.users, items[train.items])
    counts = np.bincount(train.users, minlength=data.n_users)
    order = np.lexsort((train.items, train.users))
    return Content(
        users=(users / np.maximum(counts, 1)[:, None]).astype(np.float32),
        items=items.astype(np.float32),
        user_ids=list(data.user_ids),
        item_ids=list(data.item_ids),
        titles=list(data.titles),
        seen=np.split(train.items[order].astype(np.int32), np.cumsum(counts)[:-1]),
        popularity=np.bincount(train.items, minlength=data.n_items).astype(np.int64),
        categories=data.categories,
    )


def check(content: Content, asked_of: list[str], folder: Path) -> None:
    """Ask for each of these users, with a filter or two, and for an unknown user instead of one in four."""
    write_bundle(folder, content)
    engine, reference, draw = Engine.load(folder), Reference(content), np.random.default_rng(1)
    requests = [draw_request(draw, content, user_id) for user_id in asked_of]
    requests += [request._replace(user_id=f"not {request.user_id}") for request in requests[::4]]
    sources: set[str] = set()
    for start in range(0, len(requests), 13):
        part = requests[start : start + 13]
        for request, answer in zip(part, engine.recommend_many(part), strict=True):
            found = answer.source, [(item.item_id, item.score) for item in answer.items]
            assert found == reference.answer(request), request
            sources.add(answer.source)
    assert sources == {"model", "history", "popular"}


def data_folder() -> Path | None:
    folder = os.environ.get("DVIB_DATA")
    return Path(folder) if folder else None


def test_every_user_of_ml_100k(tmp_path: Path) -> None:
    if data_folder() is None and not (cache_folder() / "ml-100k").is_dir():
        pytest.skip("ml-100k is not in the cache and tests use no network: run dvib-train fetch")
    content = content_of(load_dataset("ml-100k", data_folder(), DataOptions()))
    assert len(content.user_ids) == 943
    assert content.categories is not None
    assert {"Comedy", "Drama"} <= set(content.categories.names)
    check(content, content.user_ids, tmp_path / "b")


@pytest.mark.data
def test_users_of_sports(tmp_path: Path) -> None:
    if data_folder() is None:
        pytest.skip("DVIB_DATA is not set: the research data sets are not here")
    content = content_of(load_dataset("sports", data_folder(), DataOptions()))
    users = np.linspace(0, len(content.user_ids) - 1, 500).astype(int)
    check(content, [content.user_ids[user] for user in users], tmp_path / "b")
