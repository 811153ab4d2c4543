"""The MMRec layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.common.errors import ConfigError, DataError
from training.data.mmrec import read_mmrec
from training.data.options import DataOptions

Write = Callable[[str, str], Path]

INTER = "userID~itemID~rating~x_label\n0~2~5~0\n0~1~3~1\n1~0~1~0\n1~2~4~2\n2~1~2~0\n"


def test_splits_ids_and_features(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    image = np.array([[1.5, 2], [3, 4], [5, 6]], dtype=np.float16)
    np.save(tmp_path / "image_feat.npy", image)
    np.save(tmp_path / "my-own_feat.npy", np.asfortranarray(np.arange(9, dtype=np.float64).reshape(3, 3)))
    data = read_mmrec("toy", tmp_path, DataOptions())
    assert (data.n_users, data.n_items) == (3, 3)
    assert data.train.users.tolist() == [0, 1, 2]
    assert data.train.items.tolist() == [2, 0, 1]
    assert (data.splits["valid"].users.tolist(), data.splits["valid"].items.tolist()) == ([0], [1])
    assert (data.splits["test"].users.tolist(), data.splits["test"].items.tolist()) == ([1], [2])
    assert list(data.user_ids) == list(data.item_ids) == ["0", "1", "2"]
    assert list(data.titles) == ["", "", ""]
    assert data.features["image"].dtype == np.float32
    assert np.array_equal(data.features["image"], image)
    assert np.array_equal(data.features["my-own"], np.arange(9).reshape(3, 3))
    assert data.modalities == {"image": 2, "my-own": 3}
    assert data.notes["layout"] == "mmrec"


def test_counts_come_from_the_whole_file(tmp_path: Path, write: Write) -> None:
    write("toy.inter", "userID~itemID~x_label\n0~0~0\n0~1~1\n4~6~2\n")
    data = read_mmrec("toy", tmp_path, DataOptions())
    assert (data.n_users, data.n_items) == (5, 7)


def test_blank_lines_and_carriage_returns_do_not_matter(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER.replace("\n", "\r\n") + "\r\n\r\n")
    assert len(read_mmrec("toy", tmp_path, DataOptions()).train) == 3


def test_a_repeated_pair_keeps_its_first_row_and_is_counted(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER + "0~2~5~2\n")
    data = read_mmrec("toy", tmp_path, DataOptions())
    assert len(data.splits["test"]) == 1
    assert data.notes["repeated_interactions_dropped"] == 1


def test_items_table_gives_titles_and_derived_features(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    write("items.tsv", 'itemID~asin~title~genres\n2~B2~Red Shoe~x|y\n0~B0~"Blue" Shoe~y\n')
    data = read_mmrec("toy", tmp_path, DataOptions(text_dimensions=2))
    assert list(data.titles) == ['"Blue" Shoe', "", "Red Shoe"]
    assert data.features["text"].shape == (3, 2)
    assert data.features["attributes"].tolist() == [[0, 1], [0.5, 1], [1, 1]]
    assert data.notes["items_without_text_features"] == 1


def test_items_table_without_titles(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    write("items.tsv", "itemID~asin\n0~a\n1~b\n2~c\n")
    np.save(tmp_path / "text_feat.npy", np.ones((3, 2), dtype=np.float32))
    data = read_mmrec("toy", tmp_path, DataOptions())
    assert list(data.titles) == ["", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("userID~itemID\n0~1\n", r"toy\.inter: no column x_label .*0 train, 1 valid, 2 test.*userID, itemID"),
        ("user~item~x_label\n0~1~0\n", "no column userID or itemID"),
        ("userID~itemID~x_label\n", "no interactions"),
        ("", "is not a table"),
        (INTER + "0~0~3~3\n", r"line 7: x_label is '3', wanted a whole number from 0 to 2"),
        (INTER + "0~0~3~train\n", r"line 7: x_label is 'train'"),
        (INTER + "\n0~-1~3~0\n", r"line 8: itemID is '-1', wanted a whole number from 0"),
        (INTER + "a7~0~3~0\n", r"line 7: userID is 'a7'"),
        (INTER + "1.0~0~3~0\n", r"line 7: userID is '1.0'"),
        (INTER + "1\n", r"line 7: itemID is nothing"),
        (INTER + "1~1~1~1~1~1\n", "is not a table"),
        (INTER + "5000~1~1~1\n", r"line 7: userID is '5000', wanted a row number"),
        (INTER.replace("~1\n", "~0\n"), "the valid split is empty"),
        (INTER.replace("~2\n", "~0\n"), "the test split is empty"),
    ],
)
def test_bad_interactions(tmp_path: Path, write: Write, text: str, message: str) -> None:
    write("toy.inter", text)
    with pytest.raises(DataError, match=message) as caught:
        read_mmrec("toy", tmp_path, DataOptions())
    assert "\n" not in str(caught.value)


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*toy\.inter: No such file"):
        read_mmrec("toy", tmp_path, DataOptions())


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("asin~title\nB0~x\n", "no column itemID"),
        ("itemID~title\n3~x\n", r"line 2: itemID is '3', wanted a whole number from 0 to 2"),
        ("itemID~title\n1~x\n1~y\n", r"line 3: itemID is '1', wanted an id that no row before has"),
    ],
)
def test_bad_items_table(tmp_path: Path, write: Write, items: str, message: str) -> None:
    write("toy.inter", INTER)
    write("items.tsv", items)
    with pytest.raises(DataError, match=message):
        read_mmrec("toy", tmp_path, DataOptions())


def test_two_items_tables_are_one_too_many(tmp_path: Path, write: Write) -> None:
    write("toy.inter", INTER)
    write("items.tsv", "itemID~title\n0~x\n")
    write("items.csv", "itemID,title\n0,x\n")
    with pytest.raises(DataError, match=r"items\.tsv and items\.csv; keep one"):
        read_mmrec("toy", tmp_path, DataOptions())


@pytest.mark.parametrize(
    "options",
    [
        DataOptions(min_rating=3),
        DataOptions(k_core=5),
        DataOptions(split="chronological"),
        DataOptions(split_seed=1),
        DataOptions(text_dimensions=32),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, write: Write, options: DataOptions) -> None:
    write("toy.inter", INTER)
    (name,) = options.model_dump(exclude_defaults=True)
    with pytest.raises(ConfigError, match=f"{name}=.* does not apply to the data set toy"):
        read_mmrec("toy", tmp_path, options)
