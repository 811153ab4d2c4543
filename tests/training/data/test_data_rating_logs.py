"""Rating logs: RecBole's atomic files, and CSV or Parquet tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.data.dataset import Dataset
from training.data.options import DataOptions
from training.data.recbole import read_recbole
from training.data.tables import read_tables

Write = Callable[[str, str], Path]

# Users u and v with four items each, w with one; (u, a) twice.
ROWS = [
    ("v", "d", 4, 40), ("u", "a", 5, 10), ("u", "b", 3, 40), ("u", "a", 1, 99), ("v", "a", 4, 30), ("u", "c", 2, 30),
    ("w", "e", 5, 1), ("v", "b", 5, 20), ("u", "d", 4, 20), ("v", "c", 1, 10),
]  # fmt: skip
RATINGS = "user_id,item_id,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in ROWS)
INTER = "user_id:token~item_id:token~rating:float~timestamp:float\n" + "".join(
    "~".join(map(str, row)) + "\n" for row in ROWS
)
ITEMS = "item_id,title,genres\nb,Beta,x\na,Alpha,x|y\nzz,Unused,y\nd,Delta,y\nc,Gamma,x\n"
CHRONOLOGICAL = DataOptions(split="chronological")


def pairs(data: Dataset, split: str) -> set[tuple[str, str]]:
    part = data.splits[split]  # type: ignore[index]
    return {(data.user_ids[u], data.item_ids[i]) for u, i in zip(part.users, part.items, strict=True)}


def check_chronological(data: Dataset) -> None:
    assert list(data.user_ids) == ["v", "u", "w"]
    assert list(data.item_ids) == ["d", "a", "b", "c", "e"]
    assert pairs(data, "test") == {("v", "d"), ("u", "b")}
    assert pairs(data, "valid") == {("v", "a"), ("u", "c")}
    assert pairs(data, "train") == {("v", "b"), ("v", "c"), ("u", "a"), ("u", "d"), ("w", "e")}
    assert data.notes["repeated_interactions_dropped"] == 1
    assert data.notes["interactions_kept"] == 9
    assert data.notes["split"] == "chronological"


def test_tables_chronological(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    check_chronological(read_tables("toy", tmp_path, CHRONOLOGICAL))


def test_recbole_chronological(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    data = read_recbole("toy", tmp_path, CHRONOLOGICAL)
    check_chronological(data)
    assert dict(data.features) == {}
    assert data.notes["features"] == "none"


@pytest.mark.parametrize("kind", ["strings", "numbers", "dates"])
def test_parquet_is_read_like_csv(tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame(ROWS, schema=["userID", "itemID", "rating", "timestamp"], orient="row")
    if kind == "strings":
        frame = frame.with_columns(pl.col("userID").cast(pl.Categorical), pl.col("rating").cast(pl.String))
    elif kind == "dates":
        days = pl.duration(days=pl.col("timestamp"))
        frame = frame.with_columns((pl.lit(datetime(2024, 1, 1)) + days).alias("timestamp"))
    frame.write_parquet(tmp_path / "ratings.parquet")
    check_chronological(read_tables("toy", tmp_path, CHRONOLOGICAL))


def test_parquet_numbers_are_ids_as_people_write_them(tmp_path: Path) -> None:
    pl.DataFrame(
        {"user_id": [7.0, 7.0, 7.0], "item_id": [1, 2, 3], "rating": [1.5, 2.0, 3.0], "blob": [b"x", b"y", b"z"]}
    ).write_parquet(tmp_path / "ratings.parquet")
    pl.DataFrame({"item_id": [3, 1, 2], "title": ["c", "a", "b"], "genres": [["x", "y"], ["y"], ["x"]]}).write_parquet(
        tmp_path / "items.parquet"
    )
    data = read_tables("toy", tmp_path, DataOptions())
    assert list(data.user_ids) == ["7"]
    assert list(data.item_ids) == ["1", "2", "3"]
    assert list(data.titles) == ["a", "b", "c"]
    assert data.features["attributes"].tolist() == [[0, 1], [1, 0], [1, 1]]


def test_ids_stay_as_they_are_written(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", "user_id,item_id\n007,1.0\n007,é\n007, x\n")
    data = read_tables("toy", tmp_path, DataOptions())
    assert list(data.user_ids) == ["007"]
    assert list(data.item_ids) == ["1.0", "é", " x"]


def test_the_first_of_repeated_ratings_counts_against_the_threshold(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    data = read_tables("toy", tmp_path, DataOptions(min_rating=3))
    every = pairs(data, "train") | pairs(data, "valid") | pairs(data, "test")
    assert every == {("v", "d"), ("u", "a"), ("u", "b"), ("v", "a"), ("w", "e"), ("v", "b"), ("u", "d")}
    assert data.notes["min_rating"] == 3


def test_the_core_is_taken_after_the_threshold(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    data = read_tables("toy", tmp_path, DataOptions(min_rating=2, k_core=2))
    # (v, c) falls by its rating, so c has one rating left and falls, and w and e fall.
    assert list(data.user_ids) == ["v", "u"]
    assert list(data.item_ids) == ["d", "a", "b"]
    assert data.notes["interactions_kept"] == 6


def test_rows_are_numbered_by_what_is_left(tmp_path: Path, write: Write) -> None:
    # v's first line falls, so u comes first, and item a before d.
    write("ratings.csv", RATINGS.replace("v,d,4,40", "v,d,1,40"))
    data = read_tables("toy", tmp_path, DataOptions(min_rating=3))
    assert list(data.user_ids) == ["u", "v", "w"]
    assert list(data.item_ids) == ["a", "b", "e", "d"]


def test_features_follow_the_items_through_the_filter(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    write("items.csv", ITEMS)
    np.save(tmp_path / "image_feat.npy", np.array([[2], [1], [100], [4], [3]], dtype=np.float16))  # b a zz d c
    data = read_tables("toy", tmp_path, CHRONOLOGICAL)
    assert list(data.titles) == ["Delta", "Alpha", "Beta", "Gamma", ""]
    assert data.features["image"].tolist() == [[4], [1], [2], [3], [22]]  # e: the mean of all five rows
    assert data.notes["items_without_image_features"] == 1
    assert data.notes["features"] == "files"


def test_feature_rows_win_over_the_order_of_items(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    write("items.csv", ITEMS)
    write("feature_rows.csv", "row,item_id\n0,c\n1,d\n")
    np.save(tmp_path / "image_feat.npy", np.array([[3], [4]], dtype=np.float32))
    data = read_tables("toy", tmp_path, CHRONOLOGICAL)
    assert data.features["image"].ravel().tolist() == [4, 3.5, 3.5, 3, 3.5]
    assert data.notes["items_without_image_features"] == 3


def test_derived_features_of_recbole_items(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    write(
        "toy.item",
        "item_id:token~movie_title:token_seq~class:token_seq\n"
        "a~Red Kettle~x y\nb~Blue Kettle~x\nc~Red Shoe~\nd~Shoe~y\nzz~Unused~y\n",
    )
    data = read_recbole("toy", tmp_path, DataOptions(split="chronological", text_dimensions=3))
    assert data.features["attributes"].tolist()[:3] == [[0, 1], [1, 1], [1, 0]]  # d a b
    assert data.features["text"].shape == (5, 3)
    assert list(data.titles) == ["Shoe", "Red Kettle", "Blue Kettle", "Red Shoe", ""]
    assert data.notes["features"] == "derived"
    assert data.notes["items_without_attributes_features"] == 2  # c has no class, e is in no table
    assert data.notes["items_without_text_features"] == 1
    filled = data.features["attributes"]
    assert filled[3] == pytest.approx([0.5, 0.75])  # the mean over a b d zz
    assert np.array_equal(filled[3], filled[4])


@pytest.mark.parametrize("reader", [read_tables, read_recbole])
def test_the_same_files_and_options_give_the_same_data(
    tmp_path: Path, write: Write, reader: Callable[[str, Path, DataOptions], Dataset]
) -> None:
    write("ratings.csv", RATINGS)
    write("items.csv", ITEMS)
    write("toy.inter", INTER)
    first, again = (reader("toy", tmp_path, DataOptions(split_seed=3)) for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    others = {reader("toy", tmp_path, DataOptions(split_seed=seed)).fingerprint() for seed in range(6)}
    assert len(others) > 1


def test_whole_timestamps_stay_exact(tmp_path: Path, write: Write) -> None:
    # As float64 these nanoseconds would be equal and the file's order would decide.
    base = 1_700_000_000_000_000_000
    write("ratings.csv", f"user_id,item_id,timestamp\nu,c,{base + 3}\nu,a,{base + 1}\nu,b,{base + 2}\n")
    data = read_tables("toy", tmp_path, CHRONOLOGICAL)
    assert pairs(data, "test") == {("u", "c")}
    assert pairs(data, "valid") == {("u", "b")}


def test_fractional_timestamps(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", "user_id,item_id,timestamp\nu,c,3.5\nu,a,1e0\nu,b,3\n")
    assert pairs(read_tables("toy", tmp_path, CHRONOLOGICAL), "test") == {("u", "c")}
