"""What a request for recommendations asks for, and the limits of each of its parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from service.http.errors import Refusal
from service.http.schemas import ErrorCode
from service.values import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.settings import Settings

PARAMETERS = ("user_id", "k", "model", "exclude_seen", "exclude", "allow", "category", "min_score", "history")
LISTS = frozenset({"exclude", "allow", "history", "item_id"})


class Asked(NamedTuple):
    """A question, and the model that is to answer it; None where the request names none."""

    request: Request
    model: str | None


class Limits:
    """The limits of a request's parameters.

    Args:
        settings: Where they come from.
    """

    def __init__(self, settings: Settings) -> None:
        self._default_k = settings.default_k
        self._max_k = settings.max_k
        self._max_id_bytes = settings.max_id_bytes
        self._most = {
            "exclude": settings.max_filter_ids,
            "allow": settings.max_filter_ids,
            "history": settings.max_history,
            "item_id": settings.max_filter_ids,
        }

    def asked(self, given: Mapping[str, Any]) -> Asked | Refusal:
        """Return what is asked for.

        Args:
            given: Name to value, each of its own type; a name that is not given is missing or None.
        """
        user_id, k = given.get("user_id"), given.get("k")
        if user_id is None:
            return Refusal(ErrorCode.MISSING_USER_ID)
        if k is None:
            k = self._default_k
        wrong = self.number(k, ErrorCode.INVALID_K) or self.one_id(user_id, "user_id")
        if wrong:
            return wrong
        if len(given) <= 3 and given.keys() <= _COMMON:
            return Asked(Request(user_id, k), given.get("model"))
        min_score = given.get("min_score")
        if min_score is not None and not math.isfinite(min_score):
            return Refusal(ErrorCode.INVALID_SCORE)
        lists = {name: given.get(name) for name in self._most}
        for name, ids in lists.items():
            wrong = self.many_ids(ids, name) if ids else None
            if wrong:
                return wrong
        flag, allow = given.get("exclude_seen"), lists["allow"]
        request = Request(
            user_id,
            k,
            flag is None or flag,
            tuple(lists["exclude"] or ()),
            None if allow is None else tuple(allow),
            given.get("category"),
            min_score,
            tuple(lists["history"] or ()),
        )
        return Asked(request, given.get("model"))

    def number(self, value: int, code: ErrorCode) -> Refusal | None:
        """Refuse a number of items that is too small or too large."""
        return None if 1 <= value <= self._max_k else Refusal(code)

    def one_id(self, value: str, what: str) -> Refusal | None:
        """Refuse what cannot be an id."""
        if not value or "\0" in value:
            return Refusal(ErrorCode.INVALID_ID, what)
        if value.isascii():
            length = len(value)
        else:
            try:
                length = len(value.encode())
            except UnicodeEncodeError:  # bytes that were no UTF-8, kept as lone surrogates
                return Refusal(ErrorCode.INVALID_ID, what)
        return Refusal(ErrorCode.ID_TOO_LONG, what) if length > self._max_id_bytes else None

    def many_ids(self, values: Sequence[str], what: str) -> Refusal | None:
        """Refuse a list of ids that is too long, or that holds what cannot be one."""
        if len(values) > self._most[what]:
            return Refusal(ErrorCode.TOO_MANY_IDS, what)
        return next((wrong for value in values if (wrong := self.one_id(value, what))), None)


_COMMON = {"user_id", "k", "model"}
