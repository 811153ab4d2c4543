"""Manifests made to harm, by names, numbers, nesting and sizes: each is refused in one line, and soon."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export import bundle
from service.engine import Engine
from tests.helpers_export import dvib_export
from tests.security.hostile import Child, Document, assert_named, load_and_hash, manifest_of, refusal, seal
from training.common.errors import BundleError

NAMES = (
    "",
    ".",
    "..",
    "../secret",
    "/etc/passwd",
    "sub/file",
    "back\\slash",
    "nul\0byte",
    "items.npy\0",
    "．．／secret",  # full-width: some programs fold it to ../secret
    "items\u202eypn.",  # written from right to left
    "ｉtems.npy",
    ".hidden",
    "-rf",
    "two\nlines",
    "\x1b[2J",
    "x" * 65,
    bundle.MANIFEST,
)


@pytest.mark.parametrize("name", NAMES)
def test_impossible_names(name: str, spoiled: Path) -> None:
    document = manifest_of(spoiled)
    document["files"][name] = document["files"][bundle.ITEMS]
    seal(spoiled, document)
    assert "impossible file name" in refusal(spoiled, load_and_hash)
    assert dvib_export("verify", spoiled).complaint.isprintable()


def nested(depth: int, closed: bool) -> bytes:
    return b'{"schema_name": ' + b"[" * depth + (b"]" * depth + b"}" if closed else b"")


RAW: dict[str, tuple[bytes, str]] = {
    "brackets": (nested(10**5, True), "recursion limit"),
    "open brackets": (nested(10**5, False), "recursion limit"),
    "objects": (b'{"a":' * 10**4 + b"1" + b"}" * 10**4, "recursion limit"),
    "larger than any": (b" " * (bundle._MAX_MANIFEST_BYTES + 1), "larger than"),
    "a million brackets": (nested(10**6, False), "larger than"),
    "a key of two lines": (b'{"two\\nlines\\u001b[2J": 1}', "schema"),
    "a very long key": (b'{"' + b"k" * 10**5 + b'": 1}', "schema"),
    "a lone surrogate": (b'{"model": "\\ud800"}', "surrogate"),
    "UTF-16": ('{"schema_name": "dvib.bundle"}'.encode("utf-16"), "JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "JSON"),
    "a number without end": (b'{"schema_version": ' + b"9" * 10**5 + b"}", "schema_version"),
    "empty": (b"", "JSON"),
}


@pytest.mark.parametrize("name", RAW)
def test_malformed(name: str, spoiled: Path, loader: Child) -> None:
    raw, word = RAW[name]
    (spoiled / bundle.MANIFEST).write_bytes(raw)
    line = loader.load(spoiled)["refused"]
    assert_named(line, spoiled)
    assert bundle.MANIFEST in line
    assert word in line or name.startswith("a ")
    assert dvib_export("verify", spoiled).complaint.isprintable()
    bundle.is_bundle(spoiled)


def test_whatever_is_no_bundle_is_none(spoiled: Path) -> None:
    assert bundle.is_bundle(spoiled)
    for raw in (nested(10**5, True), b"[]", b"\xff", b" " * (bundle._MAX_MANIFEST_BYTES + 1), b'{"schema_name": "x"}'):
        (spoiled / bundle.MANIFEST).write_bytes(raw)
        assert not bundle.is_bundle(spoiled)
    (spoiled / bundle.MANIFEST).unlink()
    (spoiled / bundle.MANIFEST).symlink_to("/dev/zero")
    assert not bundle.is_bundle(spoiled)


def test_many_faults_cost_little(spoiled: Path) -> None:
    """Every wrong entry is a fault, and a report of each would fill the memory."""
    entry = b'"%d":{}'
    count = (bundle._MAX_MANIFEST_BYTES - 100) // (len(entry) + 6)
    (spoiled / bundle.MANIFEST).write_bytes(b'{"files":{' + b",".join(entry % place for place in range(count)) + b"}}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(spoiled)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_what_can_be_read_in_two_ways_is_not_read(spoiled: Path) -> None:
    text = (spoiled / bundle.MANIFEST).read_text("utf-8")
    assert text.count('"opset": 18') == 1
    for place in ('"opset": 18', '"n_users": 12', '"size"', '"sha256"'):
        twice = f"{place.partition(':')[0]}: 1, " if ":" in place else f"{place}: 0, "
        (spoiled / bundle.MANIFEST).write_text(text.replace(place, twice + place, 1), "utf-8")
        refusal(spoiled)
    (spoiled / bundle.MANIFEST).write_text(text.replace('"opset": 18', '"opset": 18, "opset": 18'), "utf-8")
    assert "twice" in refusal(spoiled)


NUMBERS: tuple[Any, ...] = (
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**400,
    10**4299,
    0.5,
    12.0,
    1e308,
    True,
    "12",
    None,
    [],
    {},
    [12],
)
PLACES = (
    ("dataset", "n_users"),
    ("dataset", "n_items"),
    ("dataset", "n_train"),
    ("dimension",),
    ("opset",),
    ("schema_version",),
    ("files", bundle.ITEMS, "size"),
    ("metrics", "test", "ndcg@10"),
    ("index", "exact"),
    ("index", "search"),
    ("index", "recall"),
    ("added",),
)


def put(document: Document, place: tuple[str, ...], value: Any) -> None:
    inner = document
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_numbers_that_are_none(place: tuple[str, ...], sound: Path, spoiled: Path) -> None:
    for value in NUMBERS:
        document = manifest_of(sound)
        put(document, place, value)
        seal(spoiled, document)
        try:
            Engine.load(spoiled)
        except BundleError as error:
            assert_named(str(error), spoiled)
        else:
            # Nothing that the answers depend on.
            assert place in {("dataset", "n_train"), ("opset",), ("metrics", "test", "ndcg@10")} or (
                place[-1] in {"exact", "search", "recall", "added"} and value in (True, {}, None)
            )


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number_is_not_a_number(number: str, spoiled: Path) -> None:
    text = (spoiled / bundle.MANIFEST).read_text("utf-8")
    assert "0.125" in text
    (spoiled / bundle.MANIFEST).write_text(text.replace("0.125", number), "utf-8")
    assert "finite number" in refusal(spoiled)


def test_two_counts_that_are_large_together(spoiled: Path) -> None:
    document = manifest_of(spoiled)
    document["dataset"]["n_items"] = document["dimension"] = 2**31 - 1
    document["added"] = {"count": 2**31 - 1, "base_version": "0" * 12}
    seal(spoiled, document)
    assert bundle.ITEMS in refusal(spoiled)


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "\x9b2J", "x" * 501, "\x7f"])
@pytest.mark.parametrize("place", [("model",), ("preset",), ("dataset", "name"), ("index", "factory")], ids=".".join)
def test_no_text_controls_a_terminal(text: str, place: tuple[str, ...], spoiled: Path) -> None:
    document = manifest_of(spoiled)
    put(document, place, text)
    seal(spoiled, document)
    assert place[-1] in refusal(spoiled)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place of a manifest that can be changed."""
    if not isinstance(value, dict):
        return []
    return [place for name in value for place in ((*path, name), *places(value[name], (*path, name)))]


@given(data=st.data(), value=JSON, sealed=st.booleans())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_value_in_any_place(data: st.DataObject, value: Any, sealed: bool, sound: Path, spoiled: Path) -> None:
    document = manifest_of(sound)
    place = data.draw(st.sampled_from(places(document)))
    action = data.draw(st.sampled_from(["put", "remove", "add"]))
    if action == "put":
        put(document, place, value)
    elif action == "add":
        put(document, (*place[:-1], data.draw(st.text(max_size=12))), value)
    else:
        inner = document
        for name in place[:-1]:
            inner = inner[name]
        del inner[place[-1]]
    try:
        if sealed:
            seal(spoiled, document)
        else:
            (spoiled / bundle.MANIFEST).write_text(json.dumps(document), "utf-8")
    except UnicodeEncodeError:
        return
    try:
        engine = Engine.load(spoiled)
    except BundleError as error:
        assert_named(str(error), spoiled)
    else:
        assert sealed or document == manifest_of(sound)
        assert engine.recommend("u-1", 3).items == Engine.load(sound).recommend("u-1", 3).items


@given(
    raw=st.binary(max_size=300) | st.text(alphabet='{}[]":,0123456789eE+-.truefalsn\\u ', max_size=300).map(str.encode)
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_place_of_a_manifest(raw: bytes, spoiled: Path) -> None:
    (spoiled / bundle.MANIFEST).write_bytes(raw)
    refusal(spoiled)
    assert not bundle.is_bundle(spoiled)
