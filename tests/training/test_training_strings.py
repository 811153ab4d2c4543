from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common.strings import StringTable

strings = st.lists(st.text(max_size=8), max_size=30)


@given(strings)
def test_a_table_is_its_list(rows: list[str]) -> None:
    table = StringTable.of(rows)
    assert len(table) == len(rows)
    assert list(table) == rows
    assert [table[row] for row in range(len(rows))] == rows


@given(strings)
def test_arrays_bring_back_the_same_table(rows: list[str]) -> None:
    table = StringTable.of(rows)
    arrays = table.to_arrays("users")
    assert set(arrays) == {"users.bytes", "users.offsets", "users.order"}
    again = StringTable.from_arrays(arrays, "users")
    assert again == table
    assert hash(again) == hash(table)
    assert list(again) == rows
    assert all(again.find(row) is not None for row in rows)


@given(strings, st.text(max_size=8))
def test_find_equals_a_search_through_the_list(rows: list[str], wanted: str) -> None:
    table = StringTable.of(rows)
    for string in [*rows, wanted]:
        row = table.find(string)
        assert row == (rows.index(string) if string in rows else None)


@given(strings)
def test_duplicates(rows: list[str]) -> None:
    duplicate = StringTable.of(rows).first_duplicate()
    if len(set(rows)) == len(rows):
        assert duplicate is None
    else:
        assert duplicate is not None
        assert rows.count(duplicate) > 1


@given(strings, strings)
def test_equality_is_that_of_the_lists(left: list[str], right: list[str]) -> None:
    assert (StringTable.of(left) == StringTable.of(right)) == (left == right)
    assert StringTable.of(left) != left


def test_strings_outside_ascii_and_hostile_ones() -> None:
    rows = ["Zoë", "фильм", "", "日本", "a\0b", "a\tb\n", "🎬", "Zoe\u0308", "a"]
    table = StringTable.of(rows)
    assert list(table) == rows
    assert [table.find(row) for row in rows] == list(range(len(rows)))
    assert table.find("Zo") is None
    assert table.find("zoë") is None


def test_a_string_that_utf8_cannot_hold_is_not_found() -> None:
    assert StringTable.of(["a", "b"]).find("\ud800") is None


def test_an_empty_table() -> None:
    table = StringTable.of([])
    assert len(table) == 0
    assert list(table) == []
    assert table.find("") is None
    assert table.first_duplicate() is None


def arrays(blob: list[int], offsets: list[int], order: list[int]) -> StringTable:
    return StringTable(np.array(blob, np.uint8), np.array(offsets, np.int64), np.array(order, np.int64))


@pytest.mark.parametrize(
    ("blob", "offsets", "order"),
    [
        ([65], [], []),
        ([65], [0], []),
        ([65, 66], [1, 2], [0]),
        ([65, 66], [0, 1], [0]),
        ([65, 66], [0, 2, 1, 2], [0, 1, 2]),
        ([65, 66], [0, 1, 2], [0]),
        ([65, 66], [0, 1, 2], [0, 0]),
        ([65, 66], [0, 1, 2], [0, 2]),
        ([65, 66], [0, 1, 2], [-1, 0]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(blob: list[int], offsets: list[int], order: list[int]) -> None:
    with pytest.raises(ValueError, match="a string table's"):
        arrays(blob, offsets, order)


def test_arrays_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="needs uint8 bytes and int64 offsets"):
        StringTable(np.zeros(1, np.uint8), np.array([0, 1], np.int32), np.array([0]))
