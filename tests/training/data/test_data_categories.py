"""Which column gives the categories, and which items of the data set get which."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.common.categories import ItemCategories
from training.common.errors import DataError
from training.data.dataset import Dataset
from training.data.items import item_table
from training.data.load import load_dataset
from training.data.mmrec import read_mmrec
from training.data.options import DataOptions
from training.data.recbole import read_recbole
from training.data.tables import read_tables
from training.data.tabular import read_table

Write = Callable[[str, str], Path]
RATINGS = "user_id,item_id\n" + "".join(f"u,{item}\n" for item in ("d", "b", "a", "c", "x", "y", "w", "v", "t", "s"))


def by_id(data: Dataset) -> dict[str, set[str]]:
    """Category → external ids."""
    assert data.categories is not None
    found = {name: data.categories.rows(name) for name in data.categories.names}
    return {name: {data.item_ids[row] for row in rows.tolist()} for name, rows in found.items() if rows is not None}


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("title,genres,brand", "genres"),
        ("Genre,category,year", "Genre"),
        ("category,genre,year", "category"),
        ("brand,main_category,sub_category", "main_category"),
        ("class,categories,year", "categories"),  # a class is one only where nothing says so more plainly
        ("title,class,tags", "class"),
        ("title,brand,year", None),
        ("tags,keywords,release_year", None),
        ("genre_description,subgenres,classic", None),
    ],
)
def test_which_column_gives_the_categories(write: Write, header: str, column: str | None) -> None:
    items = item_table(read_table(write("items.csv", f"item_id,{header}\n1,x,y,z\n")), "item_id")
    assert (items.categories and items.categories.name) == column


def test_a_float_is_no_category(write: Write) -> None:
    path = write("toy.item", "item_id:token~category:float~genre:token\n1~0.5~Film Noir\n")
    items = item_table(read_table(path), "item_id:token", {"category:float": "float", "genre:token": "token"})
    assert items.categories is not None
    assert items.categories.tokens().rows() == [(0, "Film Noir")]


def test_tables(tmp_path: Path, write: Write) -> None:
    """In the rows of the data set, not of the items table, which has others and lacks some."""
    write("ratings.csv", RATINGS)
    write("items.csv", "item_id,title,genres\na,A,War| Drama |War\nzz,Z,Western\nb,B,\nc,C,| |\nd,D,Drama\nx,X,war\n")
    data = read_tables("toy", tmp_path, DataOptions())
    assert by_id(data) == {"Drama": {"a", "d"}, "War": {"a"}, "war": {"x"}}
    assert data.categories is not None
    assert data.categories.names == ("Drama", "War", "war")  # Western: the data set has no such item


def test_only_items_that_are_left(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS + "v,d\nv,a\nv,b\nv,y\nu,z\n")
    write("items.csv", "item_id,genres\ns,Gone\na,Kept|Gone\nd,Kept\n")
    data = read_tables("toy", tmp_path, DataOptions(k_core=2))
    assert set(data.item_ids) == {"d", "b", "a", "y"}
    assert by_id(data) == {"Kept": {"a", "d"}, "Gone": {"a"}}


def test_parquet_lists(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    pl.DataFrame({"item_id": ["a", "b"], "categories": [["Baby", "Strollers & more"], ["Baby"]]}).write_parquet(
        tmp_path / "items.parquet"
    )
    data = read_tables("toy", tmp_path, DataOptions())
    assert by_id(data) == {"Baby": {"a", "b"}, "Strollers & more": {"a"}}


def test_recbole(tmp_path: Path, write: Write) -> None:
    write("toy.inter", "user_id:token~item_id:token\n" + "".join(f"u~{item}\n" for item in "dbacxywvts"))
    write("toy.item", "item_id:token~class:token_seq\na~Sci-Fi Children's\nd~Sci-Fi\nzz~Western\n")
    assert by_id(read_recbole("toy", tmp_path, DataOptions())) == {"Sci-Fi": {"a", "d"}, "Children's": {"a"}}


def test_mmrec(tmp_path: Path, write: Write) -> None:
    write("toy.inter", "userID~itemID~x_label\n0~0~0\n0~1~1\n0~3~2\n")
    write("items.tsv", "itemID~category\n3~x|y\n0~y\n2~x\n")
    assert by_id(read_mmrec("toy", tmp_path, DataOptions())) == {"x": {"2", "3"}, "y": {"0", "3"}}


@pytest.mark.parametrize(
    "items", [None, "item_id,title\na,A\n", "item_id,genres\na,\nb,\n", "item_id,genres\nzz,Western\n"]
)
def test_none(tmp_path: Path, write: Write, items: str | None) -> None:
    write("ratings.csv", RATINGS)
    np.save(tmp_path / "image_feat.npy", np.ones((len(RATINGS.split()) - 1, 2), np.float32))
    write("feature_rows.csv", "row,item_id\n" + "".join(f"{row},{name}\n" for row, name in enumerate("dbacxywvts")))
    if items is not None:
        write("items.csv", items)
    assert read_tables("toy", tmp_path, DataOptions()).categories is None


def test_training_data_are_the_same_with_other_categories(tmp_path: Path, write: Write) -> None:
    """Nothing is trained on them: a run goes on after they were added or corrected."""
    write("ratings.csv", RATINGS)
    write("items.csv", "item_id,genres\na,x|y\nb,y\n")
    data = read_tables("toy", tmp_path, DataOptions())
    assert data.categories is not None
    assert replace(data, categories=None).fingerprint() == data.fingerprint()


def test_rows_that_are_not_there(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    data = read_tables("toy", tmp_path, DataOptions())
    with pytest.raises(DataError, match="toy: the categories name items beyond the 10 that there are"):
        replace(data, categories=ItemCategories.of(np.array([3, data.n_items]), ["x", "x"]))


@pytest.mark.data
def test_the_genres_of_movielens(real_data: Path) -> None:
    with (real_data / "ml-100k" / "items.csv").open(encoding="utf-8", newline="") as stream:
        genres = {row["item_id"]: set(row["genres"].split("|")) for row in csv.DictReader(stream)}
    found = by_id(load_dataset("ml-100k", real_data, DataOptions()))
    assert len(found) == 19  # 18 genres, and "unknown"
    assert {item: {name for name in found if item in found[name]} for item in genres} == genres
