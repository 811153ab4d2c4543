"""Item rows to what people call them, and back."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from service.retrieval.rows import NO_ROWS
from service.values import DescribedItem, KnownItem, Name, ScoredItems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from export.serving import ServingBundle
    from service.retrieval.scores import Ranked
    from training.common.strings import StringTable

_NAMES = 2**16
"""Items whose id and title are kept as Python strings, those recommended last: some 20 MB at most."""


class Catalogue:
    """Ids, titles and categories of a bundle's items. Safe from any thread.

    Args:
        bundle: The bundle.

    Attributes:
        find: External id to row; None for an unknown one.
    """

    def __init__(self, bundle: ServingBundle) -> None:
        self.find = bundle.item_ids.find
        self.find("")  # prepares the table for the first request
        self._categories = bundle.categories
        self._name = _cached_names(bundle.item_ids, bundle.titles)

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of all categories, sorted; none where the data set has none."""
        return self._categories.names if self._categories else ()

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the rows of some items, int32, strictly ascending; unknown ids and repeated ones add nothing."""
        if not item_ids:
            return NO_ROWS
        found = {row for row in map(self.find, item_ids) if row is not None}
        return np.array(sorted(found), dtype=np.int32)

    def among(self, allow: Sequence[str] | None, category: str | None) -> NDArray[np.int32] | None:
        """Return the items that a request chooses from, int32, strictly ascending; None for all.

        Args:
            allow: External ids of the only items; None for all.
            category: The only category; None for all. An unknown one has no items.
        """
        allowed = None if allow is None else self.rows(allow)
        if category is None:
            return allowed
        members = self._categories.rows(category) if self._categories else None
        if members is None:
            return NO_ROWS
        return members if allowed is None else np.intersect1d(allowed, members, assume_unique=True)

    def scored(self, ranked: Ranked) -> ScoredItems:
        """Return ranked items with their names."""
        rows = ranked.rows.tolist()
        return ScoredItems(rows, list(map(self._name, rows)), ranked.scores.tolist())

    def known(self, rows: NDArray[np.int32]) -> list[KnownItem]:
        """Return items with their names."""
        return [KnownItem(row, *self._name(row)) for row in rows.tolist()]

    def described(self, rows: NDArray[np.int32]) -> list[DescribedItem]:
        """Return items with their names and categories. Looks through all categories once, however many items."""
        found: dict[int, list[str]] = {row: [] for row in rows.tolist()}
        if self._categories:
            places = np.flatnonzero(np.isin(self._categories.items, rows))
            numbers = np.searchsorted(self._categories.offsets, places, side="right") - 1
            for row, number in zip(self._categories.items[places].tolist(), numbers.tolist(), strict=True):
                found[row].append(self._categories.names[number])
        return [DescribedItem(row, *self._name(row), categories) for row, categories in found.items()]


def _cached_names(item_ids: StringTable, titles: StringTable) -> Callable[[int], Name]:
    """Return item row → id and title."""

    @lru_cache(maxsize=_NAMES)
    def name(row: int) -> Name:
        return item_ids[row], titles[row] or None

    return name
