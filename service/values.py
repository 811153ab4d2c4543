"""What an engine is asked and what it answers."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
    items: list[ScoredItem]
