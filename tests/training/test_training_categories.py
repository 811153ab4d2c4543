"""The table of categories against plain dictionaries, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.categories import ItemCategories

Members = Mapping[str, set[int]]
# Few short names, so that they repeat, and any others that UTF-8 can hold.
NAMES = st.sampled_from(["a", "A", "", "ab", "é", "z", "\U0001f600", "\uffee", "a b"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=3
)
LABELS = st.lists(st.tuples(st.integers(0, 40), NAMES))


def members_of(found: list[tuple[int, str]]) -> dict[str, set[int]]:
    members: dict[str, set[int]] = {}
    for item, name in found:
        members.setdefault(name, set()).add(item)
    return members


def table_of(found: list[tuple[int, str]]) -> ItemCategories | None:
    return ItemCategories.of(np.array([item for item, _ in found], dtype=np.int64), [name for _, name in found])


def check(table: ItemCategories | None, members: Members) -> None:
    if table is None:
        assert not members
        return
    assert list(table.names) == sorted(members)
    for name, items in members.items():
        rows = table.rows(name)
        assert rows is not None
        assert rows.dtype == np.int32
        assert rows.tolist() == sorted(items)
    assert len(table.items) == sum(map(len, members.values()))


@given(LABELS)
def test_labels_in_any_order_and_repeated(found: list[tuple[int, str]]) -> None:
    check(table_of(found), members_of(found))
    check(table_of(found[::-1] + found), members_of(found))


@given(LABELS)
def test_through_a_file_and_back(found: list[tuple[int, str]]) -> None:
    table = table_of(found)
    if table is not None:
        arrays = {"users.bytes": np.zeros(1, np.uint8), **table.to_arrays()}
        check(ItemCategories.from_arrays(arrays), members_of(found))
        # Equal tables give equal bytes: a bundle is the same whoever exports it.
        again = table_of(found[::-1])
        assert again is not None
        assert {name: array.tobytes() for name, array in again.to_arrays().items()} == {
            name: array.tobytes() for name, array in table.to_arrays().items()
        }


@given(LABELS, LABELS)
def test_more_items_behind_the_others(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> None:
    first, more = table_of(old), table_of(new)
    if first is not None and more is not None:
        joined = members_of([*old, *((item + 41, name) for item, name in new)])
        check(first.extended(more, 41), joined)


@pytest.mark.parametrize("name", ["", "A", "aa", "b", "c", "\ud800", "é"])
def test_a_name_that_is_no_category(name: str) -> None:
    table = table_of([(0, "a"), (1, "bb")])
    assert table is not None
    assert table.rows(name) is None


def test_a_file_without_any() -> None:
    assert ItemCategories.from_arrays({"titles.bytes": np.zeros(3, np.uint8)}) is None
    assert ItemCategories.of(np.empty(0, np.int64), []) is None


def test_empty_categories_next_to_each_other() -> None:
    """A row may follow a larger one wherever a category ends, also where several end at once."""
    offsets = np.array([0, 0, 2, 2, 2, 4, 4], dtype=np.int64)
    table = ItemCategories(("a", "b", "c", "d", "e", "f"), offsets, np.array([5, 6, 0, 1], dtype=np.int32))
    assert [rows.tolist() for rows in map(table.rows, table.names) if rows is not None] == [
        [],
        [5, 6],
        [],
        [],
        [0, 1],
        [],
    ]
    assert ItemCategories((), np.zeros(1, np.int64), np.empty(0, np.int32)).rows("a") is None


@pytest.mark.parametrize(
    ("names", "offsets", "items", "message"),
    [
        (("b", "a"), [0, 1, 2], [0, 0], "sorted and distinct"),
        (("a", "a"), [0, 1, 2], [0, 0], "sorted and distinct"),
        (("a", "b"), [0, 2], [0, 1], "offsets"),
        (("a", "b"), [1, 1, 2], [0, 1], "offsets"),
        (("a", "b"), [0, 1, 1], [0, 1], "offsets"),
        (("a", "b"), [0, 3, 2], [0, 1], "offsets"),
        (("a", "b"), [0, 1, 2], [0, -1], "rows"),
        (("a", "b"), [0, 2, 2], [0, 0], "strictly ascending"),
        (("a", "b"), [0, 2, 2], [1, 0], "strictly ascending"),
        (("a", "b"), [0, 0, 2], [1, 0], "strictly ascending"),  # the first is empty: nothing ends before it
    ],
)
def test_what_is_no_table(names: tuple[str, ...], offsets: list[int], items: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemCategories(names, np.array(offsets, dtype=np.int64), np.array(items, dtype=np.int32))
