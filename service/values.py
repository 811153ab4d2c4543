"""What an engine is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

Name = tuple[str, str | None]
"""External id and title of an item; None where the data set has no title."""
Source = Literal["model", "popular", "history"]


class Request(NamedTuple):
    """A question as the engine takes it: limits are checked before, ids may be unknown.

    Attributes:
        user_id: External id.
        k: Number of items, at least 1.
        exclude_seen: Whether the user's training items, and those of ``history``, are left out.
        exclude: External ids of items to leave out; unknown ones change nothing.
        allow: External ids of the only items to choose from; None for all, unknown ones add nothing.
        category: Only items of this category; None for all.
        min_score: Lowest score that is answered; for popular items, a number of training interactions.
        history: External ids of items that a user who is not in the bundle has liked: the answer is ranked for the
            mean of their vectors. Unknown ones change nothing. For a user of the bundle they are only left out.
    """

    user_id: str
    k: int
    exclude_seen: bool = True
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] | None = None
    category: str | None = None
    min_score: float | None = None
    history: tuple[str, ...] = ()


class ScoredItem(NamedTuple):
    """One recommended item; ``title`` is None where the data set has none."""

    row: int
    item_id: str
    title: str | None
    score: float


class ScoredItems(Sequence[ScoredItem]):
    """Recommended items, best first, in columns: most answers are written down and never looked at one by one.

    Equal to any sequence of equal items.

    Args:
        rows: Item rows.
        names: As many names.
        scores: As many scores.
    """

    __slots__ = ("names", "rows", "scores")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, rows: list[int], names: list[Name], scores: list[float]) -> None:
        self.rows = rows
        self.names = names
        self.scores = scores

    @classmethod
    def of(cls, items: Iterable[ScoredItem] = ()) -> Self:
        """Put items into columns."""
        given = list(items)
        names = [(item.item_id, item.title) for item in given]
        return cls([item.row for item in given], names, [item.score for item in given])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> ScoredItem: ...
    @overload
    def __getitem__(self, place: slice) -> list[ScoredItem]: ...
    def __getitem__(self, place: int | slice) -> ScoredItem | list[ScoredItem]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return ScoredItem(self.rows[place], *self.names[place], self.scores[place])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return repr(list(self))


class KnownItem(NamedTuple):
    """One item that a user has interacted with in training; ``title`` is None where the data set has none."""

    row: int
    item_id: str
    title: str | None


class DescribedItem(NamedTuple):
    """One item and the names of its categories, sorted; ``title`` is None where the data set has none."""

    row: int
    item_id: str
    title: str | None
    categories: list[str]


class Recommendation(NamedTuple):
    """An answer, best item first, and where its order comes from."""

    source: Source
    items: ScoredItems
