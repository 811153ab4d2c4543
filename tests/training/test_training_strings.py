from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.common import strings as strings_module
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


@given(st.lists(st.binary(max_size=80), max_size=12), st.randoms(use_true_random=False), st.integers(1, 3))
def test_an_order_is_accepted_if_and_only_if_it_sorts(rows: list[bytes], draw: random.Random, chunk: int) -> None:
    """Over any bytes, long common beginnings and NULs among them, whatever lies together in a chunk."""
    rows = [beginning + row for row in rows for beginning in (b"", 70 * b"\0", 9 * b"ab")][:20]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    draw.shuffle(rows if draw.random() < 0.5 else order)
    ordered = all(rows[left] <= rows[right] for left, right in pairwise(order))
    offsets = np.cumsum([0, *map(len, rows)]).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings_module, "_CHUNK", chunk)
        if not ordered:
            with pytest.raises(ValueError, match="must sort its rows"):
                arrays(list(b"".join(rows)), offsets, order)
            return
        table = arrays(list(b"".join(rows)), offsets, order)
        assert (table.first_duplicate() is None) is (len(set(rows)) == len(rows))
        assert table.is_text() is all(map(decodes, rows))


def decodes(row: bytes) -> bool:
    try:
        row.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.text(max_size=6), st.lists(st.integers(0, 24), max_size=4), st.integers(1, 5))
def test_text_is_cut_between_characters(text: str, cuts: list[int], chunk: int) -> None:
    blob = text.encode()
    bounds = [0, *sorted(min(cut, len(blob)) for cut in cuts), len(blob)]
    rows = [blob[left:right] for left, right in pairwise(bounds)]
    table = arrays(list(blob), bounds, sorted(range(len(rows)), key=rows.__getitem__))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings_module, "_CHUNK", chunk)
        assert table.is_text() is all(map(decodes, rows))


def test_text_that_ends_within_a_character_is_no_text() -> None:
    assert not arrays(list("ab日".encode()[:-1]), [0, 1, 4], [0, 1]).is_text()
    assert arrays(list("ab日".encode()), [0, 1, 5], [0, 1]).is_text()


def test_an_order_that_hides_a_duplicate_is_refused() -> None:
    """Rows a, b, a in row order: no neighbours are equal, and a search for b would go astray."""
    with pytest.raises(ValueError, match="must sort its rows"):
        arrays([97, 98, 97], [0, 1, 2, 3], [0, 1, 2])


def test_a_duplicate_that_is_no_utf8_is_named_all_the_same() -> None:
    assert arrays([255, 255], [0, 1, 2], [0, 1]).first_duplicate() == r"\xff"


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


@given(st.sets(st.text(alphabet="a\0ü", max_size=12), max_size=60), st.text(alphabet="a\0ü", max_size=12))
def test_strings_with_common_beginnings_are_told_apart(strings: set[str], other: str) -> None:
    """Shorter than a word, equal in their first word, and ending in what a word is padded with."""
    prefixed = [*strings, *(f"aaaaaaaa{string}" for string in strings if f"aaaaaaaa{string}" not in strings)]
    table = StringTable.of(prefixed)
    assert [table.find(string) for string in prefixed] == list(range(len(prefixed)))
    for string in (other, f"aaaaaaaa{other}"):
        assert table.find(string) == (prefixed.index(string) if string in prefixed else None)
