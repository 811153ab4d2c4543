"""Immutable tables of external ids and titles: two arrays instead of millions of Python strings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray


class StringTable:
    """Row number → string, and back.

    The strings lie one after another as UTF-8 in ``blob``; row ``r`` is ``blob[offsets[r]:offsets[r + 1]]``. ``order``
    lists the rows sorted by their bytes, so that a string is found by bisection without a dictionary.

    Args:
        blob: uint8 [total bytes].
        offsets: int64 [rows + 1], from 0, ascending.
        order: int64 [rows], a permutation.

    Raises:
        ValueError: The arrays do not fit together.
    """

    __slots__ = ("_blob", "offsets", "order")

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        rows = len(offsets) - 1
        if blob.dtype != np.uint8 or offsets.dtype != np.int64 or order.dtype != np.int64:
            raise ValueError("a string table needs uint8 bytes and int64 offsets and order")
        if rows < 0 or offsets[0] != 0 or offsets[-1] != len(blob) or bool(np.any(np.diff(offsets) < 0)):
            raise ValueError("a string table's offsets must ascend from 0 to the number of bytes")
        if len(order) != rows or (rows and (order.min() < 0 or order.max() >= rows or len(np.unique(order)) != rows)):
            raise ValueError("a string table's order must be a permutation of its rows")
        self._blob = blob
        self.offsets = offsets
        self.order = order

    @classmethod
    def of(cls, strings: Iterable[str]) -> Self:
        """Build a table from strings in row order."""
        encoded = [string.encode("utf-8") for string in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in encoded], out=offsets[1:])
        order = np.array(sorted(range(len(encoded)), key=encoded.__getitem__), dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets, order)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> Self:
        """Read the table that ``to_arrays`` wrote under the same prefix.

        Raises:
            KeyError: One of its arrays is missing.
            ValueError: The arrays do not fit together.
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
        return self._bytes_at(row).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringTable):
            return NotImplemented
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self._blob, other._blob)

    def __hash__(self) -> int:
        return hash((len(self), self._blob.tobytes()))

    def _bytes_at(self, row: int) -> bytes:
        return self._blob[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def find(self, string: str) -> int | None:
        """Return the row of a string, or None. Where a string occurs twice, the first row in ``order``."""
        try:
            wanted = string.encode("utf-8")
        except UnicodeEncodeError:
            return None  # a lone surrogate: no table can hold it
        position = bisect_left(self.order, wanted, key=lambda row: self._bytes_at(int(row)))
        if position == len(self):
            return None
        row = int(self.order[position])
        return row if self._bytes_at(row) == wanted else None

    def first_duplicate(self) -> str | None:
        """Return a string that occurs in more than one row, or None."""
        ranked = [self._bytes_at(int(row)) for row in self.order]
        for left, right in pairwise(ranked):
            if left == right:
                return left.decode("utf-8")
        return None
