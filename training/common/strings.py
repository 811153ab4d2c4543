"""Immutable tables of external ids and titles: two arrays instead of millions of Python strings."""

from __future__ import annotations

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**16
_WORD = 8
_WORDS = 8
"""Neighbours are compared in NumPy over so many words of eight bytes; those that agree so far, in Python."""


class StringTable:
    """Row number → string, and back.

    The strings lie one after another as UTF-8 in ``blob``; row ``r`` is ``blob[offsets[r]:offsets[r + 1]]``. ``order``
    lists the rows sorted by their bytes, so that a string is found by bisection without a dictionary.

    Args:
        blob: uint8 [total bytes].
        offsets: int64 [rows + 1], from 0, ascending.
        order: int64 [rows], a permutation.

    Raises:
        ValueError: The arrays do not fit together, or ``order`` does not sort the rows.
    """

    __slots__ = ("_blob", "_bounds", "_repeated", "_sorted", "_starts", "_text", "offsets", "order")

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        if blob.dtype != np.uint8 or offsets.dtype != np.int64 or order.dtype != np.int64:
            raise ValueError("a string table needs uint8 bytes and int64 offsets and order")
        if (blob.ndim, offsets.ndim, order.ndim) != (1, 1, 1):
            raise ValueError("a string table needs arrays of one dimension")
        rows = len(offsets) - 1
        # Neighbours are compared and not subtracted: a difference of two int64 may wrap around.
        if rows < 0 or offsets[0] != 0 or offsets[-1] != len(blob) or bool(np.any(offsets[1:] < offsets[:-1])):
            raise ValueError("a string table's offsets must ascend from 0 to the number of bytes")
        if len(order) != rows or (rows and (order.min() < 0 or order.max() >= rows)) or not _all_there(order):
            raise ValueError("a string table's order must be a permutation of its rows")
        self._blob = blob
        self.offsets = offsets
        self.order = order
        # Single elements come out of a memoryview several times faster than out of an array.
        self._text = np.ascontiguousarray(blob).data
        self._bounds = np.ascontiguousarray(offsets).data
        self._sorted = np.ascontiguousarray(order).data
        self._starts: memoryview | None = None
        self._repeated = self._check_sorted()

    @classmethod
    def of(cls, strings: Iterable[str]) -> Self:
        """Build a table from strings in row order."""
        encoded = [string.encode("utf-8") for string in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
        order = np.array(sorted(range(len(encoded)), key=encoded.__getitem__), dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets, order)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> Self:
        """Read the table that ``to_arrays`` wrote under the same prefix.

        Raises:
            KeyError: One of its arrays is missing.
            ValueError: The arrays do not fit together, or ``order`` does not sort the rows.
        """
        return cls(
            np.asarray(arrays[f"{prefix}.bytes"]),
            np.asarray(arrays[f"{prefix}.offsets"]),
            np.asarray(arrays[f"{prefix}.order"]),
        )

    def to_arrays(self, prefix: str) -> dict[str, NDArray[np.generic]]:
        """Return the table as named arrays for a safetensors file."""
        return {f"{prefix}.bytes": self._blob, f"{prefix}.offsets": self.offsets, f"{prefix}.order": self.order}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        return str(self._text[self._bounds[row] : self._bounds[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringTable):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self._blob, other._blob)

    def __hash__(self) -> int:
        return hash((len(self), self._blob.tobytes()))

    def _bytes_at(self, row: int) -> bytes:
        return self._text[self._bounds[row] : self._bounds[row + 1]].tobytes()

    def find(self, string: str) -> int | None:
        """Return the row of a string, or None. Where a string occurs twice, the first row in ``order``."""
        try:
            wanted = string.encode("utf-8")
        except UnicodeEncodeError:
            return None  # a lone surrogate: no table can hold it
        if self._starts is None:
            self._starts = self._first_words()
        word = int.from_bytes(wanted[:_WORD].ljust(_WORD, b"\0"), "big")
        first = bisect_left(self._starts, word)
        if first == len(self):
            return None
        position = first
        if first + 1 < len(self) and self._starts[first + 1] == word:
            last = bisect_right(self._starts, word, first)
            position = bisect_left(self._sorted, wanted, first, last, key=self._bytes_at)
            if position == last:
                return None
        row = self._sorted[position]
        return row if self._bytes_at(row) == wanted else None

    def _first_words(self) -> memoryview:
        """Return the first eight bytes of all strings in their order, uint64 [rows], to bisect before the rest."""
        words, found = _Words(self._blob), np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), _CHUNK):
            rows = self.order[start : start + _CHUNK]
            begins = self.offsets[rows]
            found[start : start + len(rows)] = words.at(begins, self.offsets[rows + 1] - begins)
        return found.data

    def first_duplicate(self) -> str | None:
        """Return a string that occurs in more than one row, or None."""
        if self._repeated is None:
            return None
        return self._bytes_at(self._repeated).decode("utf-8", "backslashreplace")

    def is_text(self) -> bool:
        """Tell whether every string is valid UTF-8, so that none fails to decode later."""
        # All strings are valid if they are so end to end and none begins within a character.
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for start in range(0, len(self._blob), _CHUNK):
                decoder.decode(self._blob[start : start + _CHUNK].tobytes())
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        begins = self.offsets[self.offsets < len(self._blob)]
        return not bool(np.any(self._blob[begins] & 0xC0 == 0x80))

    def _check_sorted(self) -> int | None:
        """Check that ``order`` sorts the rows; return a row whose string the next one repeats, or None.

        A table that lied about its order could hide a duplicate, or a string from ``find``.
        """
        repeated = None
        words = _Words(self._blob)
        for start in range(0, len(self.order) - 1, _CHUNK):
            rows = self.order[start : start + _CHUNK + 1]
            signs = self._compare(words, rows[:-1], rows[1:])
            if np.any(signs > 0):
                raise ValueError("a string table's order must sort its rows by their bytes")
            if repeated is None and not signs.all():
                repeated = int(rows[np.argmin(signs != 0)])
        return repeated

    def _compare(self, words: _Words, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return -1, 0 or 1, int8 [n], where a row's string comes before, equals or comes after another's."""
        places = np.stack([self.offsets[left], self.offsets[right]])
        lengths = np.stack([self.offsets[left + 1], self.offsets[right + 1]]) - places
        # Their lengths decide where one is the beginning of the other.
        signs: NDArray[np.int8] = np.sign(lengths[0] - lengths[1]).astype(np.int8)
        shorter = lengths.min(axis=0)
        pending = np.arange(len(left))
        for _ in range(_WORDS):
            first, second = words.at(places[0], lengths[0]), words.at(places[1], lengths[1])
            differ = first != second
            signs[pending[differ]] = np.where(first < second, -1, 1)[differ]
            more = ~differ & (shorter > _WORD)
            pending, places, lengths = pending[more], places[:, more] + _WORD, lengths[:, more] - _WORD
            shorter = shorter[more] - _WORD
            if not len(pending):
                return signs
        signs[pending] = [
            self._compare_rest(*bounds) for bounds in zip(*places.tolist(), *lengths.tolist(), strict=True)
        ]
        return signs

    def _compare_rest(self, first: int, second: int, first_length: int, second_length: int) -> int:
        blob = self._blob.data
        mine, other = blob[first : first + first_length].tobytes(), blob[second : second + second_length].tobytes()
        return (mine > other) - (mine < other)


class _Words:
    """Eight bytes from any place of some bytes, as numbers that compare like the bytes.

    Args:
        blob: uint8 [n].
    """

    def __init__(self, blob: NDArray[np.uint8]) -> None:
        padded = np.ascontiguousarray(blob) if len(blob) >= _WORD else np.resize(blob, _WORD)
        self._last = len(padded) - _WORD
        self._words: NDArray[np.uint64] = np.ndarray(self._last + 1, dtype=">u8", buffer=padded, strides=(1,))

    def at(self, places: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the first eight bytes of strings, uint64 [n], zeros behind the end of a shorter one.

        Args:
            places: int64 [n], where the strings begin.
            lengths: int64 [n], how many bytes they have.
        """
        begins = np.minimum(places, self._last)
        skipped = np.minimum(places - begins, _WORD - 1)  # a string that begins at the very end is empty
        words = self._words[begins].astype(np.uint64) << (8 * skipped).astype(np.uint64)
        kept = np.minimum(lengths, _WORD)
        dropped = np.minimum(_WORD - kept, _WORD - 1)
        shift = (8 * dropped).astype(np.uint64)
        return np.where(kept > 0, words >> shift << shift, np.uint64(0))


def _all_there(rows: NDArray[np.int64]) -> bool:
    """Tell whether row numbers below their count are a permutation."""
    there = np.zeros(len(rows), dtype=np.bool_)
    there[rows] = True
    return bool(there.all())
