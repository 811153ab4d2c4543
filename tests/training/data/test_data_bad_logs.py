"""Rating logs that cannot be used: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.common.errors import ConfigError, DataError
from training.data.options import DataOptions
from training.data.recbole import read_recbole
from training.data.tables import read_tables

Write = Callable[[str, str], Path]
RATINGS = "user_id,item_id,rating,timestamp\n" + "u,a,4,1\nu,b,5,2\nu,c,3,3\nv,a,4,1\nv,b,2,2\n" * 2
INTER = "user_id:token~item_id:token~rating:float~timestamp:float\n" + "u~a~4~1\nu~b~5~2\nu~c~3~3\nv~a~4~1\n" * 2
ITEMS = "item_id,title,genres\nb,Beta,x\na,Alpha,x|y\nzz,Unused,y\nd,Delta,y\nc,Gamma,x\n"
CHRONOLOGICAL = DataOptions(split="chronological")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("user_id,item_id\nu,a\n", DataOptions(min_rating=3), "min_rating is set, but the data set toy has no ratings"),
        (
            "user_id,item_id\nu,a\n",
            CHRONOLOGICAL,
            "split=chronological is set, but .* no timestamps .*use split=random",
        ),
        (RATINGS, DataOptions(text_dimensions=8), "text_dimensions=8 does not apply .* it has no texts"),
    ],
)
def test_options_that_the_file_cannot_serve(
    tmp_path: Path, write: Write, text: str, options: DataOptions, message: str
) -> None:
    write("ratings.csv", text)
    with pytest.raises(ConfigError, match=message):
        read_tables("toy", tmp_path, options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("user,item\nu,a\n", DataOptions(), r"ratings\.csv: no column user_id .*the header names user, item"),
        ("user_id,movie\nu,a\n", DataOptions(), "no column item_id"),
        ("user_id,item_id\n", DataOptions(), "none of 0 interactions is left"),
        ("user_id,item_id\nu,a\nu,b\n", DataOptions(), "the valid split is empty"),
        ("user_id,item_id\nu,a\n,b\n", DataOptions(), "data row 2: user_id is nothing, wanted an id"),
        (RATINGS, DataOptions(min_rating=9), r"none of 10 interactions is left \(min_rating=9.0, k_core=0\)"),
        (RATINGS, DataOptions(k_core=9), "none of 10 interactions is left"),
        (RATINGS + "u,z,good,5\n", DataOptions(min_rating=1), "data row 11: rating is 'good', wanted a finite number"),
        (RATINGS + "u,z,nan,5\n", DataOptions(min_rating=1), "data row 11: rating is 'nan', wanted a finite number"),
        (RATINGS + "u,z,3,today\n", CHRONOLOGICAL, "data row 11: timestamp is 'today', wanted a finite number"),
    ],
)
def test_bad_ratings(tmp_path: Path, write: Write, text: str, options: DataOptions, message: str) -> None:
    write("ratings.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        read_tables("toy", tmp_path, options)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_bytes(b"user_id,item_id\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="is not a table of the kind its name says: invalid utf-8"):
        read_tables("toy", tmp_path, DataOptions())


def test_a_parquet_that_is_none(tmp_path: Path, write: Write) -> None:
    write("ratings.parquet", "user_id,item_id\n")
    with pytest.raises(DataError, match="is not a table of the kind its name says"):
        read_tables("toy", tmp_path, DataOptions())


def test_csv_and_parquet_together_are_ambiguous(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    write("ratings.parquet", "x")
    with pytest.raises(DataError, match=r"ratings\.csv and ratings\.parquet; keep one"):
        read_tables("toy", tmp_path, DataOptions())


def test_no_ratings_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither ratings\.csv nor ratings\.parquet"):
        read_tables("toy", tmp_path, DataOptions())


def test_a_matrix_with_rows_for_other_items(tmp_path: Path, write: Write) -> None:
    write("ratings.csv", RATINGS)
    write("items.csv", ITEMS)
    np.save(tmp_path / "text_feat.npy", np.ones((4, 2), dtype=np.float32))
    with pytest.raises(
        DataError, match=r"text_feat\.npy has the shape \(4, 2\), wanted 5 rows, .* items in items\.csv"
    ):
        read_tables("toy", tmp_path, DataOptions())
    write("feature_rows.csv", "row,item_id\n0,a\n")
    with pytest.raises(DataError, match=r"wanted 1 rows, one for each of the rows in feature_rows\.csv"):
        read_tables("toy", tmp_path, DataOptions())


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        ("user_id:token~rating:float\nu~1\n", None, "no column item_id:token"),
        (INTER, "movie:token\nx\n", r"toy\.item: no column item_id:token"),
        (INTER, "item_id:token~title\na~x\n", "column title has no type"),
        (INTER + "u~q~x\n", None, "line 10: rating:float is 'x'"),
    ],
)
def test_bad_recbole_files(tmp_path: Path, write: Write, inter: str, item: str | None, message: str) -> None:
    write("toy.inter", inter)
    if item is not None:
        write("toy.item", item)
    with pytest.raises(DataError, match=message):
        read_recbole("toy", tmp_path, DataOptions(min_rating=1))
