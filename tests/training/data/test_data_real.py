"""The research data sets, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.load import available_datasets, load_dataset
from training.data.options import DataOptions

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("name", "users", "items", "splits", "modalities"),
    [
        ("baby", 19_445, 7_050, (118_551, 21_682, 20_559), {}),
        ("sports", 35_598, 18_357, (218_409, 40_029, 37_899), {"text": 384}),
        ("clothing", 39_387, 23_033, (197_338, 41_189, 40_150), {}),
        ("tiktok", 9_308, 6_710, (59_541, 3_051, 6_130), {"audio": 128, "image": 128}),
    ],
)
def test_published_splits(
    real_data: Path, name: str, users: int, items: int, splits: tuple[int, ...], modalities: dict[str, int]
) -> None:
    data = load_dataset(name, real_data, DataOptions())
    assert (data.n_users, data.n_items) == (users, items)
    assert tuple(len(part) for part in data.splits.values()) == splits
    assert data.modalities == modalities
    assert data.notes["repeated_interactions_dropped"] == 0
    assert data.item_ids[items - 1] == str(items - 1)


def test_movielens_with_posters_and_plots(real_data: Path) -> None:
    data = load_dataset("ml-100k", real_data, DataOptions())
    assert (data.n_users, data.n_items) == (943, 1_682)
    assert sum(len(part) for part in data.splits.values()) == 100_000
    assert data.modalities == {"image": 1280, "text": 384}
    assert data.notes["items_without_image_features"] == data.notes["items_without_text_features"] == 19
    assert data.titles[data.item_ids.find("1") or 0] == "Toy Story (1995)"
    stored = np.load(real_data / "ml-100k" / "text_feat.npy", allow_pickle=False)
    assert np.array_equal(data.features["text"][data.item_ids.find("1") or 0], stored[0])  # row 0 is item 1


def test_movielens_filtered_by_time(real_data: Path) -> None:
    data = load_dataset("ml-100k", real_data, DataOptions(min_rating=4, k_core=5, split="chronological"))
    every = [np.concatenate([getattr(p, side) for p in data.splits.values()]) for side in ("users", "items")]
    assert np.bincount(every[0], minlength=data.n_users).min() >= 5
    assert np.bincount(every[1], minlength=data.n_items).min() >= 5
    assert data.n_items < 1_682
    assert data.notes["interactions_kept"] == len(every[0])


def test_all_are_listed(real_data: Path) -> None:
    assert {"baby", "clothing", "ml-100k", "sports", "tiktok"} <= set(available_datasets(real_data))
