"""A bundle whose approximate index finds far less than its manifest says is not served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from export import bundle
from export.index import build_index
from export.index_tuning import IndexChoice
from service.engine import Engine
from service.http.app import create_app
from service.retrieval.ranking import Ranker
from service.settings import Settings
from tests.helpers_bundle import make_content, write_bundle
from tests.helpers_export import edit_json, reseal
from training.common.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CONTENT = make_content(n_users=200, n_items=400, dimension=8, seen_share=0.1, seed=6)
FACTORIES = ("HNSW16,Flat", "IVF8,Flat", "SQ8")


def bundle_with(folder: Path, factory: str, indexed: NDArray[np.float32], *, recall: float | None = None) -> Path:
    """Write a bundle whose index is over these vectors; its manifest says what is true of the items' own."""
    write_bundle(folder, CONTENT)
    choice = IndexChoice(factory)
    stated = build_index(CONTENT.items, folder / bundle.INDEX, CONTENT.users, choice, CONTENT.seen)
    entry = stated.model_dump(mode="json")
    build_index(indexed, folder / bundle.INDEX, CONTENT.users, choice, CONTENT.seen)
    if recall is not None:
        entry["recall"]["value"] = recall
    edit_json(folder / bundle.MANIFEST, lambda document: document.update(index=entry))
    reseal(folder)
    return folder


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_sound_index_is_served(factory: str, tmp_path: Path) -> None:
    assert not Engine.load(bundle_with(tmp_path / "b", factory, CONTENT.items)).manifest.index.exact


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_index_over_other_vectors_is_refused(factory: str, tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(CONTENT.items)
    with pytest.raises(BundleError, match=r"items\.faiss finds 0\.\d\d of the best items, the manifest says") as caught:
        Engine.load(bundle_with(tmp_path / "b", factory, shuffled))
    assert str(tmp_path / "b") in str(caught.value)


def test_a_recall_a_little_off_is_not_the_services_concern(tmp_path: Path) -> None:
    """Few users are tried, so theirs may lie below that of all."""
    folder = bundle_with(tmp_path / "b", "IVF8,Flat", CONTENT.items, recall=1.0)
    Engine.load(folder)


@pytest.mark.parametrize(("first", "second", "served"), [(0.91, 0.0, True), (0.7, 0.92, True), (0.7, 0.8, False)])
def test_more_users_are_tried_before_a_refusal(
    first: float, second: float, served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_with(tmp_path / "b", "SQ8", CONTENT.items, recall=1.0)
    asked: list[int] = []

    def measured(_: Ranker, vectors: NDArray[np.float32], seen: list[NDArray[np.int32]]) -> float:
        users = np.linspace(0, 199, len(vectors)).astype(np.int64)
        np.testing.assert_array_equal(vectors, CONTENT.users[users])
        for rows, user in zip(seen, users, strict=True):
            np.testing.assert_array_equal(rows, CONTENT.seen[user])
        asked.append(len(vectors))
        return (first, second)[len(asked) - 1]

    monkeypatch.setattr(Ranker, "recall", measured)
    if served:
        Engine.load(folder)
    else:
        with pytest.raises(BundleError, match=r"finds 0\.80 of the best items, the manifest says 1\.00"):
            Engine.load(folder)
    assert asked == [64, 200][: 1 if first > 0.9 else 2]


def test_the_application_does_not_call_its_answers_exact() -> None:
    description = create_app({}, Settings()).description
    assert "Answers are exact" not in description
    assert "unless the bundle's index is approximate" in description
