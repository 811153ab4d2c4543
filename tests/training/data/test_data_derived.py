"""Features derived from an items table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.common.errors import DataError
from training.data.derived import MAX_TOKENS, attribute_features, text_features
from training.data.items import ItemTable, item_table
from training.data.tabular import read_table

Write = Callable[[str, str], Path]

MOVIES = """item_id:token~movie_title:token_seq~release_year:token~class:token_seq~length:float
1~Toy Story~1995~Animation Children's Comedy~81
2~GoldenEye~1995~Action Adventure Thriller~130
3~The Jungle Book~1967~Animation Children's~78
4~Twelve Monkeys~1996~Sci-Fi Thriller~
"""


def movies(path: Path) -> ItemTable:
    table = read_table(path)
    return item_table(table, "item_id:token", {name: name.partition(":")[2] for name in table.frame.columns})


def test_recbole_types_decide_what_a_column_is(write: Write) -> None:
    items = movies(write("toy.item", MOVIES))
    assert items.titles.to_list() == ["Toy Story", "GoldenEye", "The Jungle Book", "Twelve Monkeys"]
    assert [(c.name, c.words, c.prose, c.separator) for c in items.columns] == [
        ("movie_title", True, True, " "),
        ("release_year", False, False, None),
        ("class", True, False, " "),
    ]


def test_attributes_of_known_movies(write: Write) -> None:
    # Years first (1967, 1995, 1996), then Action, Adventure, Animation, Children's, Comedy, Sci-Fi, Thriller.
    matrix = attribute_features(movies(write("toy.item", MOVIES)))
    assert matrix is not None
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [
        [0, 1, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 1, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_csv_cells_list_labels_between_bars(write: Write) -> None:
    path = write("items.csv", "item_id,title,genres\na,One,War|Drama\nb,Two,\nc,Three,Drama|Drama\n")
    matrix = attribute_features(item_table(read_table(path), "item_id"))
    assert matrix is not None
    assert matrix.tolist() == [[1, 1], [0, 0], [1, 0]]  # Drama, War


def test_columns_that_name_items_are_no_attributes(write: Write) -> None:
    n = MAX_TOKENS + 1
    rows = [f"{i},posters/{i}.jpg,{i % n},{i % 2}" for i in range(2 * n)]
    path = write("items.csv", "\n".join(["item_id,poster,shelf,half", *rows]) + "\n")
    matrix = attribute_features(item_table(read_table(path), "item_id"))
    assert matrix is not None
    assert matrix.shape == (2 * n, 2)  # half alone: 257 shelves are too many, every poster is another


def test_no_labels_no_words(write: Write) -> None:
    items = item_table(read_table(write("items.csv", "item_id,title\na,the\nb,\n")), "item_id")
    assert attribute_features(items) is None
    assert text_features(items, 8) is None  # stop words only
    bare = item_table(read_table(write("bare.csv", "item_id\na\nb\n")), "item_id")
    assert text_features(bare, 8) is None
    assert bare.titles.to_list() == ["", ""]


def test_text_features_bring_like_items_together(write: Write) -> None:
    words = [
        "red running shoe",
        "blue running shoe",
        "green running shoe",
        "steel kettle",
        "iron kettle",
        "glass kettle",
    ]
    items = item_table(
        read_table(write("items.csv", "item_id,title\n" + "".join(f"{i},{w}\n" for i, w in enumerate(words)))),
        "item_id",
    )
    matrix = text_features(items, 2)
    assert matrix is not None
    assert matrix.shape == (6, 2)
    assert matrix.dtype == np.float32
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    similar = unit @ unit.T
    assert similar[:3, :3].min() > 0.9
    assert similar[3:, 3:].min() > 0.9
    assert np.abs(similar[:3, 3:]).max() < 0.1


def test_text_features_are_the_same_every_time(write: Write) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{i},{' '.join(f'word{w}' for w in rng.integers(0, 90, 12))}\n" for i in range(150)]
    items = item_table(read_table(write("items.csv", "item_id,text\n" + "".join(lines))), "item_id")
    first = text_features(items, 16)
    np.random.seed(99)  # noqa: NPY002  (the global generator must not matter)
    second = text_features(items, 16)
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()
    peaks = first[np.abs(first).argmax(axis=0), np.arange(16)]
    assert (peaks > 0).all()


def test_few_words_make_narrow_features(write: Write) -> None:
    items = item_table(read_table(write("items.csv", "item_id,title\na,kettle\nb,shoe\nc,kettle shoe\n")), "item_id")
    matrix = text_features(items, 64)
    assert matrix is not None
    assert matrix.shape == (3, 2)


@pytest.mark.parametrize("n_items", [1, 4])
def test_items_that_all_say_the_same(write: Write, n_items: int) -> None:
    lines = "".join(f"{i},steel kettle\n" for i in range(n_items))
    matrix = text_features(item_table(read_table(write("items.csv", "item_id,title\n" + lines)), "item_id"), 8)
    assert matrix is not None
    assert np.isfinite(matrix).all()
    assert matrix[:, 0] == pytest.approx(1.0)


def test_all_columns_of_words_are_read(write: Write) -> None:
    items = movies(write("toy.item", MOVIES))
    joined = text_features(items, 64)
    titles = text_features(ItemTable(items.path, items.ids, items.titles, items.columns[:1]), 64)
    assert joined is not None
    assert titles is not None
    shared = np.array([1, 0, 2, 3])
    assert abs(joined[0] @ joined[shared[2]]) > 0.1  # both are animations for children
    assert abs(titles[0] @ titles[shared[2]]) < 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id:token~name:words\n1~x\n", "column name:words has the type 'words'; known: token"),
        ("item_id:token~name:token\n1~x\n1~y\n", "line 3: item_id:token is '1', wanted an id that no row before has"),
        ("item_id:token~name:token\n~y\n", "line 2: item_id:token is nothing, wanted an id"),
    ],
)
def test_bad_items(write: Write, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        movies(write("toy.item", text))


@pytest.mark.parametrize(
    ("header", "titles"),
    [
        ("item_name,brand", "x"),
        ("name,title", "y"),
        ("image_filename,brand", ""),
        ("productName,brand", "x"),
    ],
)
def test_which_column_is_the_title(write: Write, header: str, titles: str) -> None:
    items = item_table(read_table(write("items.csv", f"item_id,{header}\n1,x,y\n")), "item_id")
    assert items.titles.to_list() == [titles]
    assert items.titles.dtype == pl.String
