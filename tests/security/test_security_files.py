"""Folders with something else in them than the files the manifest lists: each refused, nothing outside looked at."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from export import bundle
from export.serving import load_for_serving
from service.engine import Engine
from tests.helpers_export import dvib_export
from tests.security.hostile import SERVED, Child, load_and_hash, manifest_of, refusal, reseal, seal

Fresh = Callable[[], Path]
FILES = (*SERVED, bundle.MODEL_ONNX, bundle.TORCHSCRIPT)
_IN_ACCESS, _IN_OPEN = 0x1, 0x20


@contextmanager
def nobody_opens(folder: Path) -> Iterator[None]:
    """The kernel is asked whether any process, native code included, opens a file of a folder or reads it."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(folder), _IN_OPEN | _IN_ACCESS) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"secret")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), nobody_opens(tmp_path):
        (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("name", [*FILES, bundle.MANIFEST])
def test_links_are_not_followed(name: str, fresh: Fresh, tmp_path: Path, loader: Child) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for target in ("file", "folder", "nowhere", "loop"):
        folder = fresh()
        shutil.copy(folder / name, outside / "file")
        (outside / "folder").mkdir(exist_ok=True)
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name if target == "loop" else outside / target)
        with nobody_opens(outside):
            assert name in refusal(folder, load_and_hash)
            if name in (*SERVED, bundle.MANIFEST):
                assert name in loader.load(folder)["refused"]
        outcome = dvib_export("verify", folder)
        assert (outcome.code, outcome.out) == (2, "")
        assert name in outcome.complaint


def make_socket(path: Path) -> None:
    # A socket's path may be no longer than 107 bytes.
    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*SERVED, bundle.MANIFEST])
def test_what_is_no_regular_file(name: str, kind: str, spoiled: Path, loader: Child) -> None:
    """A pipe that nobody writes to must not make the service wait for ever."""
    (spoiled / name).unlink()
    KINDS[kind](spoiled / name)
    assert name in loader.load(spoiled)["refused"]
    assert dvib_export("verify", spoiled).code == 2
    assert not bundle.is_bundle(spoiled) or name != bundle.MANIFEST


def test_a_device_is_not_read(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a device needs rights that a test lacks; the kernel's own stands in for it."""
    opened = os.open

    def other(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        return opened("/dev/zero", flags) if path == bundle.ITEMS else opened(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", other)
    assert f"{bundle.ITEMS} is not a regular file" in refusal(spoiled)


@pytest.mark.parametrize("name", FILES)
def test_cut_grown_emptied_or_gone(name: str, fresh: Fresh) -> None:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda data: data[:-1],
        "half": lambda data: data[: len(data) // 2],
        "grown": lambda data: data + b"\0",
        "empty": lambda _: b"",
    }
    for change in changes.values():
        folder = fresh()
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        assert name in refusal(folder, load_and_hash)
        if name in SERVED:
            reseal(folder)
            assert name in refusal(folder)
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


@pytest.mark.parametrize("first", SERVED)
def test_swapped_files(first: str, fresh: Fresh) -> None:
    for second in SERVED:
        if first < second:
            folder = fresh()
            (folder / first).rename(folder / "aside")
            (folder / second).rename(folder / first)
            (folder / "aside").rename(folder / second)
            refusal(folder)
            reseal(folder)
            refusal(folder)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "\udcff\udcfe", "ｉtems.npy", "items.npy ", "x" * 255])
def test_an_extra_file_of_an_odd_name(name: str, spoiled: Path) -> None:
    (spoiled / name).write_bytes(b"?")
    assert "not listed" in refusal(spoiled)
    outcome = dvib_export("verify", spoiled)
    assert outcome.code == 2
    assert outcome.complaint.isprintable()


def test_a_hard_link_is_a_file_like_any_other(spoiled: Path, tmp_path: Path) -> None:
    """Its content counts: a copy that shares files with another version is sound, a changed one is not."""
    (tmp_path / "same").hardlink_to(spoiled / bundle.ITEMS)
    assert Engine.load(spoiled).recommend("u-1", 2).items
    with (tmp_path / "same").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"\xff")
    assert "differs from its hash" in refusal(spoiled)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_a_huge_declared_size(size: int, spoiled: Path, loader: Child) -> None:
    document = manifest_of(spoiled)
    document["files"][bundle.ITEMS]["size"] = size
    seal(spoiled, document)
    assert f"the manifest says {size}" in refusal(spoiled, load_and_hash)
    assert "the manifest says" in loader.load(spoiled)["refused"]


def test_a_file_larger_than_the_memory(spoiled: Path, loader: Child) -> None:
    """A sparse file costs its maker nothing; it must cost nothing to refuse it."""
    os.truncate(spoiled / bundle.ITEMS, 2**42)
    document = manifest_of(spoiled)
    document["files"][bundle.ITEMS]["size"] = 2**42
    seal(spoiled, document)
    assert "more than fit into memory" in loader.load(spoiled)["refused"]


def test_the_machine_has_so_much_memory_and_no_more(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems promise any amount, and end the process that believes them."""
    monkeypatch.setattr(bundle, "_physical_memory", lambda: (spoiled / bundle.ITEMS).stat().st_size - 1)
    assert f"{bundle.ITEMS} has 1808 bytes, more than fit into memory" in refusal(spoiled)


def test_one_that_fits_into_the_machine_but_not_into_the_process(spoiled: Path, loader: Child) -> None:
    """The other process may use 4 GiB."""
    size = 5 * 2**30
    os.truncate(spoiled / bundle.ITEMS, size)
    document = manifest_of(spoiled)
    document["files"][bundle.ITEMS]["size"] = size
    seal(spoiled, document)
    assert "more than fit into memory" in loader.load(spoiled)["refused"]


@pytest.mark.parametrize("name", SERVED)
def test_what_was_hashed_is_what_is_parsed(name: str, spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody overwrites the file in place, or cuts it, as soon as its hash is known: both come too late."""
    expected = load_for_serving(spoiled)
    original = bundle.BundleReader._check_hash

    def then_overwrite(reader: bundle.BundleReader, hashed: str, sha256: str) -> None:
        original(reader, hashed, sha256)
        if hashed == name:
            size = (spoiled / name).stat().st_size
            with (spoiled / name).open("r+b") as stream:
                stream.write(b"\xee" * (size - 1))
                stream.truncate(0)

    monkeypatch.setattr(bundle.BundleReader, "_check_hash", then_overwrite)
    loaded = load_for_serving(spoiled)
    assert (spoiled / name).stat().st_size == 0
    assert bytes(loaded.index) == bytes(expected.index)
    assert loaded.user_tower == expected.user_tower
    np.testing.assert_array_equal(loaded.items, expected.items)
    np.testing.assert_array_equal(loaded.popularity, expected.popularity)
    np.testing.assert_array_equal(loaded.seen.items, expected.seen.items)
    assert list(loaded.item_ids) == list(expected.item_ids)
    assert loaded.categories is not None
    assert expected.categories is not None
    assert loaded.categories.names == expected.categories.names
    np.testing.assert_array_equal(loaded.categories.items, expected.categories.items)
    assert loaded.certificate == expected.certificate
    Engine(loaded)


def test_a_file_that_shrinks_while_it_is_read(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = bundle._read_whole

    def cut_first(stream: io.FileIO, size: int) -> memoryview:
        if size == (spoiled / bundle.ITEMS).stat().st_size:
            os.truncate(spoiled / bundle.ITEMS, 100)
        return original(stream, size)

    monkeypatch.setattr(bundle, "_read_whole", cut_first)
    assert f"{bundle.ITEMS} differs from its hash" in refusal(spoiled)


def test_each_file_is_opened_once_and_none_outside(sound: Path, loader: Child, elsewhere: Path) -> None:
    """Python reports every file that it opens, and the kernel every one that is opened where the process works."""
    loader.load(sound)  # what is imported late is opened late
    with nobody_opens(elsewhere):
        reply = loader.load(sound)
    # A number is a file that was opened before, by name.
    assert sorted(name for name in reply["opened"] if not name.isdigit()) == sorted(
        [str(sound), bundle.MANIFEST, *SERVED]
    )


def test_a_folder_replaced_while_it_is_read_is_not_mixed(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is looked up once: all files are those of the folder that it led to then."""
    expected = bytes(load_for_serving(spoiled).index)
    original = bundle.BundleReader._check_names

    def then_replace(reader: bundle.BundleReader) -> None:
        original(reader)
        spoiled.rename(tmp_path / "retired")
        spoiled.mkdir()

    monkeypatch.setattr(bundle.BundleReader, "_check_names", then_replace)
    assert bytes(load_for_serving(spoiled).index) == expected


def test_the_current_pointer_may_be_a_link(sound: Path, tmp_path: Path) -> None:
    """The folder itself is what the operator names; only what lies in it is a stranger's."""
    (tmp_path / "current").symlink_to(sound)
    assert Engine.load(tmp_path / "current").recommend("u-1", 2).items


def test_a_header_of_eight_exabytes(spoiled: Path, loader: Child) -> None:
    (spoiled / bundle.SEEN).write_bytes(struct.pack("<Q", 2**63 - 1) + b"{}")
    reseal(spoiled)
    assert "header is said to have 9223372036854775807 bytes" in loader.load(spoiled)["refused"]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"{} {}", "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": "\xff"}', "no JSON"),
        (b'{"a\n": 1, \x1b[2J}', "no JSON"),
        (b"[" * 10**6, "no JSON"),
        (b'{"a":' * 10**5, "no JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b'"{}"', "no JSON object"),
        (b" " * bundle.MAX_CERTIFICATE_BYTES + b"{}", "larger than"),
    ],
    ids=range(12),
)
def test_a_certificate_that_could_not_be_sent(content: bytes, wanted: str, spoiled: Path, loader: Child) -> None:
    (spoiled / bundle.CERTIFICATE).write_bytes(content)
    reseal(spoiled)
    assert f"{bundle.CERTIFICATE} is {wanted}" in refusal(spoiled)
    assert f"{bundle.CERTIFICATE} is {wanted}" in loader.load(spoiled)["refused"]


def test_a_certificate_is_handed_out_as_it_stands(spoiled: Path) -> None:
    content = b'{"b": 1.0,\n "a": "\\u0000"}'.ljust(bundle.MAX_CERTIFICATE_BYTES)
    (spoiled / bundle.CERTIFICATE).write_bytes(content)
    reseal(spoiled)
    assert load_for_serving(spoiled).certificate == content
