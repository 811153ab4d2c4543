"""Array files, string tables and seen items made to harm, behind hashes that fit."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from export import bundle
from export.arrays import read_npy, read_safetensors
from tests.security.hostile import CONTENT, Child, refusal, reseal
from training.common.strings import StringTable

N, D = CONTENT.items.shape
U = len(CONTENT.users)
Arrays = dict[str, NDArray[Any]]
TYPES = ("<f2", "<f4", "<f8", "<i4", "<i8", "|u1")
arrays = st.sampled_from(TYPES).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9))
)


def npy_of(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy(header: str | bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """Put a header of one's own before some bytes."""
    raw = (header.encode() if isinstance(header, str) else header) + b"\n"
    length = struct.pack("<H" if version[0] == 1 else "<I", len(raw))
    return b"\x93NUMPY" + version + length + raw + data


def header_of(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def safetensors(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@given(arrays)
@settings(deadline=None)
def test_what_numpy_saves_is_read_as_it_was(array: NDArray[Any]) -> None:
    found = read_npy(memoryview(npy_of(array)))
    np.testing.assert_array_equal(found, array, strict=True)
    assert not found.flags.writeable


@given(st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda name: name != "__metadata__"), arrays, max_size=5))
@settings(deadline=None)
def test_what_safetensors_saves_is_read_as_it_was(tensors: Arrays) -> None:
    found = read_safetensors(memoryview(save(tensors)))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@given(st.binary(max_size=200), st.data())
@settings(max_examples=300, deadline=None)
def test_any_other_bytes_are_refused_or_read_within_their_bounds(noise: bytes, data: st.DataObject) -> None:
    """Random bytes, alone and written over a sound file at any place."""
    sound: dict[Callable[[memoryview], object], bytes] = {
        read_npy: npy_of(np.arange(6, dtype=np.int64)),
        read_safetensors: save({"a": np.arange(3, dtype=np.int32), "b": np.zeros((2, 2), np.uint8)}),
    }
    for read, file in sound.items():
        place = data.draw(st.integers(0, len(file)))
        for raw in (noise, file[:place] + noise + file[place + len(noise) :], file[:place] + noise + file[place:]):
            with contextlib.suppress(ValueError):
                found: Any = read(memoryview(raw))
                parts = found.values() if isinstance(found, dict) else [found]
                assert sum(part.nbytes for part in parts) < len(raw)


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=CONTENT.items)
    return stream.getvalue()


NPY: dict[str, bytes] = {
    "4 EB": npy(header_of("(1152921504606846976,)")),
    "64 GB": npy(header_of("(17179869184,)")),
    "wrapping": npy(header_of("(4294967296, 4294967296)")),
    "fewer": npy(header_of(f"({N}, {D})"), bytes(4 * N * D - 1)),
    "more": npy(header_of(f"({N}, {D})"), bytes(4 * N * D + 1)),
    "negative": npy(header_of("(-1, -4)"), bytes(16)),
    "scalar": npy(header_of("()"), bytes(4)),
    "three": npy(header_of("(1, 1, 1)"), bytes(4)),
    "big-endian": npy(header_of(f"({N}, {D})", "'>f4'"), bytes(4 * N * D)),
    "columns": npy(header_of(f"({N}, {D})", order="True"), bytes(4 * N * D)),
    "object": npy(header_of(f"({N}, {D})", "'|O'"), b"cos\nsystem\n(S'true'\ntR."),
    "void": npy(header_of("(1,)", "[('a', '|O')]"), bytes(8)),
    "no width": npy(header_of("(1099511627776,)", "'|u0'")),
    "minus signs": npy("-" * 9000 + "1"),
    "parentheses": npy("(" * 60000),
    "code": npy("__import__('os').abort()"),
    "no dictionary": npy("0"),
    "two headers": npy(header_of("(1,)") + header_of("(1,)"), bytes(4)),
    "version 2": npy(header_of(f"({N}, {D})"), bytes(4 * N * D), b"\2\0"),
    "no header": b"\x93NUMPY\1\0\xff\xff",
    "magic": b"\x93NUMPY",
    "zip": npz(),
    "pickle": b"cos\nabort\n(tR.",
}


@pytest.mark.parametrize("name", NPY)
@pytest.mark.parametrize("file", [bundle.ITEMS, bundle.POPULARITY])
def test_npy_files(file: str, name: str, spoiled: Path, loader: Child) -> None:
    (spoiled / file).write_bytes(NPY[name])
    reseal(spoiled)
    assert f"{file} is no plain array" in loader.load(spoiled)["refused"]


I8 = tensor("I64", [1], 0, 8)
SAFETENSORS: dict[str, bytes] = {
    "8 EB": struct.pack("<Q", 2**63 - 1) + b"{}",
    "16 EB": b"\xff" * 8 + b"{}",
    "header to the end": struct.pack("<Q", 3) + b"{}",
    "large header": safetensors(b" " * 2**16 + b"{}"),
    "deep": safetensors(b'{"a":' * 10000),
    "brackets": safetensors(b"[" * 60000),
    "list": safetensors([]),
    "no JSON": safetensors(b"\xff"),
    "huge shape": safetensors({"offsets": tensor("I64", [2**61], 0, 8)}, bytes(8)),
    "wrapping shape": safetensors({"offsets": tensor("I64", [2**32, 2**32], 0, 0)}),
    "empty and huge": safetensors({"offsets": tensor("I64", [2**62, 0], 0, 0)}),
    "huge number": safetensors(b'{"a":{"dtype":"I64","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)),
    "negative": safetensors({"offsets": tensor("I64", [-1], 0, 8)}, bytes(8)),
    "backwards": safetensors({"offsets": tensor("I64", [1], 8, 0)}, bytes(8)),
    "beyond": safetensors({"offsets": tensor("I64", [2], 0, 16)}, bytes(8)),
    "overlap": safetensors({"offsets": I8, "items": tensor("I32", [2], 0, 8)}, bytes(8)),
    "gap": safetensors({"offsets": I8, "items": tensor("I32", [1], 12, 16)}, bytes(16)),
    "tail": safetensors({"offsets": I8}, bytes(9)),
    "float8": safetensors({"offsets": tensor("F8_E4M3", [8], 0, 8)}, bytes(8)),
    "bfloat16": safetensors({"offsets": tensor("BF16", [4], 0, 8)}, bytes(8)),
    "unknown type": safetensors({"offsets": tensor("two\nlines", [4], 0, 8)}, bytes(8)),
    "unknown field": safetensors({"offsets": I8 | {"run": "me"}}, bytes(8)),
    "metadata": safetensors({"__metadata__": {"a": "b"}, "offsets": I8}, bytes(8)),
    "a name twice": safetensors(
        b'{"a":%s,"a":%s}' % tuple(json.dumps(tensor("I64", [1], place, place + 8)).encode() for place in (0, 8)),
        bytes(16),
    ),
    "true": safetensors({"offsets": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, bytes(1)),
    "scalar": safetensors({"offsets": tensor("I64", [], 0, 8), "items": tensor("I32", [0], 8, 8)}, bytes(8)),
    "nothing": b"",
    "seven bytes": bytes(7),
}


@pytest.mark.parametrize("name", SAFETENSORS)
@pytest.mark.parametrize("file", [bundle.SEEN, bundle.IDS])
def test_safetensors_files(file: str, name: str, spoiled: Path, loader: Child) -> None:
    (spoiled / file).write_bytes(SAFETENSORS[name])
    reseal(spoiled)
    assert f"{spoiled}: {file} " in loader.load(spoiled)["refused"]


LAST, FIRST = 2**63 - 1, -(2**63)


def edit_tensors(folder: Path, file: str, edit: Callable[[Arrays], object]) -> None:
    found = {name: array.copy() for name, array in load_file(folder / file).items()}
    edit(found)
    save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, folder / file)
    reseal(folder)


def set_to(name: str, *places: tuple[int, int]) -> Callable[[Arrays], object]:
    def edit(found: Arrays) -> None:
        for place, value in places:
            found[name][place] = value

    return edit


def reshaped(name: str, *shape: int) -> Callable[[Arrays], object]:
    return lambda found: found.update({name: found[name].reshape(shape)})


def of_type(name: str, kind: Any) -> Callable[[Arrays], object]:
    return lambda found: found.update({name: found[name].astype(kind)})


TABLES: dict[str, Callable[[Arrays], object]] = {
    "beyond the end": set_to("users.offsets", (3, 10**6)),
    "negative": set_to("users.offsets", (3, -1)),
    "falling": lambda found: set_to("users.offsets", (2, int(found["users.offsets"][4])))(found),
    # Each difference of neighbours is positive, in numbers of 64 bits: 0, 2^63 - 1, -2^63, -1, …
    "wrapping": set_to("users.offsets", (1, LAST), (2, FIRST), (3, -1)),
    "wrapping titles": set_to("titles.offsets", (1, LAST), (2, FIRST), (3, -1)),
    "last offset": set_to("items.offsets", (N, LAST)),
    "first offset": set_to("items.offsets", (0, 1)),
    "order beyond": set_to("items.order", (0, N)),
    "order negative": set_to("items.order", (0, -1)),
    "order repeated": lambda found: set_to("items.order", (0, int(found["items.order"][1])))(found),
    "order lies": lambda found: found["items.order"].sort(),
    "two dimensions": reshaped("users.order", 1, U),
    "two dimensions of bytes": lambda found: reshaped("users.bytes", 1, len(found["users.bytes"]))(found),
    "two dimensions of offsets": reshaped("users.offsets", U + 1, 1),
    "no bytes": lambda found: found.update({"users.bytes": found["users.bytes"][:0]}),
    "no offsets": lambda found: found.update({"users.offsets": found["users.offsets"][:0]}),
    "int32": of_type("users.offsets", np.int32),
    "bytes of int64": of_type("users.bytes", np.int64),
    "too few": lambda found: found.update(StringTable.of(CONTENT.user_ids[:-1]).to_arrays("users")),
    "too many titles": lambda found: found.update(StringTable.of([*CONTENT.titles, ""]).to_arrays("titles")),
    "twice": lambda found: found.update(StringTable.of(["a"] * N).to_arrays("items")),
    "missing": lambda found: found.pop("items.order"),
}


@pytest.mark.parametrize("name", TABLES)
def test_string_tables(name: str, spoiled: Path, loader: Child) -> None:
    edit_tensors(spoiled, bundle.IDS, TABLES[name])
    assert bundle.IDS in refusal(spoiled)
    assert bundle.IDS in loader.load(spoiled)["refused"]


@pytest.mark.parametrize("kind", ["users", "items", "titles"])
@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_text_that_is_no_utf8(kind: str, text: bytes, spoiled: Path) -> None:
    strings: list[bytes] = [b"%d" % row for row in range(U if kind == "users" else N)]
    strings[4] = text
    offsets = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    order = np.array(sorted(range(len(strings)), key=strings.__getitem__), dtype=np.int64)
    table = StringTable(np.frombuffer(b"".join(strings), np.uint8), offsets, order)
    edit_tensors(spoiled, bundle.IDS, lambda found: found.update(table.to_arrays(kind)))
    assert "UTF-8" in refusal(spoiled)


def test_control_characters_are_data(spoiled: Path, loader: Child) -> None:
    """They are served as JSON, which escapes them; only in messages of ours would they do harm."""
    titles = ["\x1b[2J\n\0\u202e", *CONTENT.titles[1:]]
    ids = ["\x1b[2J", "\0", "", *CONTENT.item_ids[3:]]
    edit_tensors(spoiled, bundle.IDS, lambda found: found.update(StringTable.of(titles).to_arrays("titles")))
    edit_tensors(spoiled, bundle.IDS, lambda found: found.update(StringTable.of(ids).to_arrays("items")))
    _, items = loader.load(spoiled, k=1000)["answers"][CONTENT.user_ids[2]]
    assert {row: (item_id, title) for row, item_id, title, _ in items}[0] == (ids[0], titles[0])
    ids[1] = ids[0]
    edit_tensors(spoiled, bundle.IDS, lambda found: found.update(StringTable.of(ids).to_arrays("items")))
    assert r"'\x1b[2J' occurs twice" in refusal(spoiled)


SEEN: dict[str, Callable[[Arrays], object]] = {
    "wrapping": set_to("offsets", (1, LAST), (2, FIRST), (3, -1)),
    "falling": set_to("offsets", (1, 10**3)),
    "negative": set_to("offsets", (2, -1)),
    "row beyond": set_to("items", (3, N)),
    "largest row": set_to("items", (3, 2**31 - 1)),
    "negative row": set_to("items", (3, -1)),
    "a row twice": lambda found: set_to("items", (3, int(found["items"][2])))(found),
    "two dimensions": lambda found: reshaped("items", 1, len(found["items"]))(found),
    "columns": lambda found: reshaped("items", len(found["items"]), 1)(found),
    "two dimensions of offsets": reshaped("offsets", 1, U + 1),
    "int64": of_type("items", np.int64),
    "offsets of int32": of_type("offsets", np.int32),
    "a user fewer": lambda found: found.update(offsets=found["offsets"][1:]),
}


@pytest.mark.parametrize("name", SEEN)
def test_seen_items(name: str, spoiled: Path, loader: Child) -> None:
    edit_tensors(spoiled, bundle.SEEN, SEEN[name])
    assert bundle.SEEN in refusal(spoiled)
    assert bundle.SEEN in loader.load(spoiled)["refused"]


OFFSETS, ROWS, NAMES = "categories.offsets", "categories.items", "categories.names"
C = 6


def named(*names: str) -> Callable[[Arrays], object]:
    return lambda found: found.update(StringTable.of(names).to_arrays(NAMES))


def without(name: str) -> Callable[[Arrays], object]:
    return lambda found: found.pop(name)


CATEGORIES: dict[str, Callable[[Arrays], object]] = {
    "names not sorted": named("b", "a", "c", "d", "e", "f"),
    "a name twice": named("a", "b", "b", "d", "e", "f"),
    "a name fewer": named("a", "b", "c", "d", "e"),
    "a name more": named("a", "b", "c", "d", "e", "f", "g"),
    "no names": named(),
    "order of names": set_to(f"{NAMES}.order", (0, 1), (1, 0)),
    "names beyond": set_to(f"{NAMES}.offsets", (C, LAST)),
    "wrapping": set_to(OFFSETS, (1, LAST), (2, FIRST), (3, -1)),
    "falling": set_to(OFFSETS, (1, 10**3)),
    "negative": set_to(OFFSETS, (2, -1)),
    "begins late": set_to(OFFSETS, (0, 1)),
    "ends late": set_to(OFFSETS, (C, LAST)),
    "ends early": lambda found: set_to(OFFSETS, (C, len(found[ROWS]) - 1))(found),
    "row beyond": set_to(ROWS, (-1, N)),
    "largest row": set_to(ROWS, (-1, 2**31 - 1)),
    "negative row": set_to(ROWS, (0, -1)),
    "a row twice": lambda found: set_to(ROWS, (N, int(found[ROWS][N - 1])))(found),
    "descending": lambda found: found.update({ROWS: found[ROWS][::-1].copy()}),
    "two dimensions": lambda found: reshaped(ROWS, 1, len(found[ROWS]))(found),
    "a scalar": lambda found: found.update({ROWS: np.array(0, np.int32)}),
    "two dimensions of offsets": reshaped(OFFSETS, 1, C + 1),
    "no offsets": lambda found: found.update({OFFSETS: found[OFFSETS][:0]}),
    "rows of int64": of_type(ROWS, np.int64),
    "offsets of int32": of_type(OFFSETS, np.int32),
    **{f"without {name}": without(name) for name in (OFFSETS, ROWS, f"{NAMES}.bytes", f"{NAMES}.order")},
    "one of them alone": lambda found: [found.pop(name) for name in list(found) if name.startswith(NAMES)],
}


@pytest.mark.parametrize("name", CATEGORIES)
def test_categories(name: str, spoiled: Path, loader: Child) -> None:
    edit_tensors(spoiled, bundle.IDS, CATEGORIES[name])
    assert bundle.IDS in refusal(spoiled)
    assert bundle.IDS in loader.load(spoiled)["refused"]


def test_names_of_categories_that_are_no_utf8(spoiled: Path) -> None:
    strings = [b"%d" % row for row in range(C - 1)] + [b"\xff"]
    offsets = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    table = StringTable(np.frombuffer(b"".join(strings), np.uint8), offsets, np.arange(C))
    edit_tensors(spoiled, bundle.IDS, lambda found: found.update(table.to_arrays(NAMES)))
    assert "UTF-8" in refusal(spoiled)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_no_numbers(value: float, spoiled: Path) -> None:
    items = CONTENT.items.copy()
    items[-1, -1] = value
    np.save(spoiled / bundle.ITEMS, items)
    reseal(spoiled)
    assert "NaN or infinite" in refusal(spoiled)


@pytest.mark.parametrize("value", [-1, FIRST])
def test_popularity_below_zero(value: int, spoiled: Path) -> None:
    """The negative of the least int64 is itself: such an item would come first."""
    popularity = CONTENT.popularity.copy()
    popularity[5] = value
    np.save(spoiled / bundle.POPULARITY, popularity)
    reseal(spoiled)
    assert f"{bundle.POPULARITY} is not a number of interactions" in refusal(spoiled)
