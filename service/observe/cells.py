"""Named float64 numbers of one process, in a file that every other process can read while they change.

To count costs one store into memory, no lock and no system call, and what was counted outlives a killed process. The
file of a process that has ended goes to the next one that starts, which counts on from there: so there are never more
files than processes that ever ran at the same time.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from training.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_MAGIC = b"dvibcel1"
_HEAD = struct.Struct("<8sQ")
"""What the file is, and how many of its bytes hold entries: written last, so that no reader sees half an entry."""
_ENTRY = struct.Struct("<IHH")
"""Bytes of the name, number of float64 values, 1 for those that the next process counts on from."""
_CAPACITY = 2**16
_CLAIM_S = 1.0
_LOCK, _CELLS = ".lock", ".cells"


class Entry(NamedTuple):
    """One name and its numbers as some process had them; ``lasting`` ones are counted on by the next process."""

    name: bytes
    lasting: bool
    values: tuple[float, ...]


class Cells:
    """Numbers of this process that no other one reads."""

    def __init__(self) -> None:
        self._views: dict[bytes, tuple[bool, memoryview[float]]] = {}

    def view(self, name: bytes, count: int, *, lasting: bool) -> memoryview[float]:
        """Return the numbers of a name, to be changed in place by one thread; a new name's are zero.

        Args:
            name: What a reader finds them by.
            count: How many.
            lasting: Whether the next process of this slot counts on from them; others it begins anew, and they count
                only as long as this process lives.

        Returns:
            float64 [count].
        """
        known = self._views.get(name)
        if known is None or len(known[1]) != count:
            known = self._views[name] = (lasting, self._room(name, count, lasting=lasting))
        return known[1]

    def read(self) -> Iterator[tuple[bool, list[Entry]]]:
        """Read the numbers of every process that writes into the same folder.

        Yields:
            Of each: whether it lives, and its entries.
        """
        yield True, [Entry(name, lasting, tuple(view)) for name, (lasting, view) in self._views.items()]

    def close(self) -> None:
        """Leave the slot to the next process."""

    def _room(self, _name: bytes, count: int, *, lasting: bool) -> memoryview[float]:  # noqa: ARG002
        return memoryview(bytearray(8 * count)).cast("d")


class LostCells(Cells):
    """Numbers of a process that has no room in the folder of all: what it shows are those of the others.

    Args:
        folder: See `SharedCells`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def read(self) -> Iterator[tuple[bool, list[Entry]]]:
        """Read the numbers of every other process."""
        return _read_all(self._folder)


class SharedCells(Cells):
    """Numbers of this process in a folder of all.

    The slot is locked as long as the process lives, and the kernel unlocks it however the process ends. A child that
    is forked afterwards would share lock and numbers: open these after the fork.

    Args:
        folder: Of one service alone; made where it is missing.
        slot: A name that no living process may have; where left out, the first free number is taken.
        fresh: Whether what ended processes have counted is forgotten.

    Raises:
        ConfigError: The slot is taken.
        OSError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path, slot: str | None = None, *, fresh: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        super().__init__()
        slot, self._lock = _claim_first(folder) if slot is None else (slot, _claim(folder, slot))
        path = folder / (slot + _CELLS)
        if fresh:
            path.unlink(missing_ok=True)
            for ended in folder.glob("*" + _CELLS):
                if not _locked(ended.with_suffix(_LOCK)):
                    ended.unlink(missing_ok=True)
        try:
            self._begin(path)
        except OSError:
            os.close(self._lock)  # what the file says is of a process that has ended
            raise

    def read(self) -> Iterator[tuple[bool, list[Entry]]]:
        """Read the numbers of every process of the folder, those of earlier ones too."""
        return _read_all(self._folder)

    def _begin(self, path: Path) -> None:
        lasting = [entry for entry in _read(path) if entry.lasting]
        new = path.with_suffix(".new")
        self._file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._used = _HEAD.size
        try:
            self._reserve(_CAPACITY)
        except OSError:
            os.close(self._file)
            raise
        for entry in lasting:
            self.view(entry.name, len(entry.values), lasting=True)[:] = _array(entry.values)
        self._set_used()
        new.replace(path)  # a reader finds the old file or the new one, and the same sums in both

    def close(self) -> None:
        """Leave the slot to the next process."""
        os.close(self._file)
        os.close(self._lock)

    def _reserve(self, capacity: int) -> None:
        # Views of the former, smaller map stay valid: both show the same file. Room is taken from the disk at once, for
        # a store into a page that a full disk cannot give would kill the process.
        try:
            os.posix_fallocate(self._file, 0, capacity)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
        self._map = mmap.mmap(self._file, capacity)

    def _set_used(self) -> None:
        self._map[: _HEAD.size] = _HEAD.pack(_MAGIC, self._used)

    def _room(self, name: bytes, count: int, *, lasting: bool) -> memoryview[float]:
        start = self._used
        values = start + _ENTRY.size + _padded(len(name))
        end = values + 8 * count
        try:
            while end > len(self._map):
                self._reserve(2 * len(self._map))
        except OSError as error:  # better counted for nobody than a request that fails for it
            _LOG.error("no room for more metrics, some are not shown: %s", error)
            return super()._room(name, count, lasting=lasting)
        self._map[start : start + _ENTRY.size] = _ENTRY.pack(len(name), count, lasting)
        self._map[start + _ENTRY.size : start + _ENTRY.size + len(name)] = name
        self._used = end
        self._set_used()
        return memoryview(self._map)[values:end].cast("d")


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _array(values: tuple[float, ...]) -> memoryview[float]:
    return memoryview(struct.pack(f"{len(values)}d", *values)).cast("d")


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _claim(folder: Path, slot: str) -> int:
    deadline = time.monotonic() + _CLAIM_S
    while (lock := _try_lock(folder / (slot + _LOCK))) is None:  # a reader holds it for a moment only
        if time.monotonic() > deadline:
            raise ConfigError(
                f"metrics_dir {folder} is in use by another service; choose another folder, or leave it out"
            )
        time.sleep(0.01)
    return lock


def _claim_first(folder: Path) -> tuple[str, int]:
    for number in itertools.count():
        lock = _try_lock(folder / f"{number}{_LOCK}")
        if lock is not None:
            return str(number), lock
    raise AssertionError("numbers do not end")


def _locked(path: Path) -> bool:
    """Return whether the process that owns a slot lives."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read_all(folder: Path) -> Iterator[tuple[bool, list[Entry]]]:
    for path in sorted(folder.glob("*" + _CELLS)):
        yield _locked(path.with_suffix(_LOCK)), _read(path)


def _read(path: Path) -> list[Entry]:
    """Return a file's entries; of a missing or foreign file none."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEAD.size)
            magic, used = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
            data = file.read(used - _HEAD.size) if magic == _MAGIC and used > _HEAD.size else b""
    except FileNotFoundError:
        return []
    entries, position = [], 0
    while position < len(data):
        size, count, lasting = _ENTRY.unpack_from(data, position)
        position += _ENTRY.size
        name = data[position : position + size]
        position += _padded(size)
        entries.append(Entry(name, bool(lasting), struct.unpack_from(f"{count}d", data, position)))
        position += 8 * count
    return entries
