"""Which items belong to which category. An item has none, one or several. Needs NumPy alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.common.compressed import are_items, are_offsets, ascend
from training.common.strings import StringTable

_NAMES, _OFFSETS, _ITEMS = "categories.names", "categories.offsets", "categories.items"


@dataclass(frozen=True, eq=False)
class ItemCategories:
    """Per-category items in compressed rows: category ``c`` has ``items[offsets[c]:offsets[c + 1]]``.

    Attributes:
        names: The categories, C of them, sorted and distinct.
        offsets: int64 [C + 1], from 0, ascending.
        items: int32 [number of labels], item rows, strictly ascending within each category.

    Raises:
        ValueError: One of these does not hold.
    """

    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    def __post_init__(self) -> None:
        if any(first >= second for first, second in zip(self.names, self.names[1:], strict=False)):
            raise ValueError("the names of the categories must be sorted and distinct")
        if not are_items(self.items, 2**31):
            raise ValueError("the items of the categories must be rows, int32")
        if not are_offsets(self.offsets, len(self.names), len(self.items)):
            raise ValueError("the offsets of the categories must ascend from 0 to the number of their items")
        if not ascend(self.offsets, self.items):
            raise ValueError("the items of a category must be strictly ascending")

    @classmethod
    def of(cls, items: NDArray[np.integer[Any]], labels: Sequence[str]) -> Self | None:
        """Build the table from single labels in any order; a repeated one counts once.

        Args:
            items: [n], item rows.
            labels: [n], the category that the item of the same place has.

        Returns:
            The table, or None without any label.
        """
        if not len(labels):
            return None
        names = tuple(sorted(set(labels)))
        numbers = {name: number for number, name in enumerate(names)}
        numbered = np.fromiter(map(numbers.__getitem__, labels), np.int64, len(labels))
        # One number for both: a category and, in the lower half, an item.
        categories, rows = np.divmod(np.unique((numbered << 32) + items), 2**32)
        offsets = np.searchsorted(categories, np.arange(len(names) + 1)).astype(np.int64)
        return cls(names, offsets, rows.astype(np.int32))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self | None:
        """Read what ``to_arrays`` wrote; None where there is nothing of it, which is no error.

        Raises:
            KeyError: Some of it is missing.
            ValueError: It does not fit together, or a name is not valid UTF-8.
        """
        if not any(name.startswith("categories.") for name in arrays):
            return None
        names = StringTable.from_arrays(arrays, _NAMES)
        if not names.is_text():
            raise ValueError("the names of the categories are not valid UTF-8")
        return cls(tuple(names), np.asarray(arrays[_OFFSETS]), np.asarray(arrays[_ITEMS]))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the table as named arrays for a safetensors file."""
        return {**StringTable.of(self.names).to_arrays(_NAMES), _OFFSETS: self.offsets, _ITEMS: self.items}

    def rows(self, name: str) -> NDArray[np.int32] | None:
        """Return the items of a category, int32, strictly ascending, or None for a name that is no category."""
        number = bisect_left(self.names, name)
        if number == len(self.names) or self.names[number] != name:
            return None
        return self.items[self.offsets[number] : self.offsets[number + 1]]

    def extended(self, more: ItemCategories, first_row: int) -> ItemCategories:
        """Return the categories of these items and of more, whose rows begin at ``first_row``."""
        items = np.concatenate([self.items, more.items + np.int32(first_row)])
        joined = type(self).of(items, [*self._labels(), *more._labels()])
        return self if joined is None else joined

    def _labels(self) -> list[str]:
        """Return the category of each entry of ``items``."""
        counts = np.diff(self.offsets).tolist()
        return [name for name, count in zip(self.names, counts, strict=True) for _ in range(count)]
