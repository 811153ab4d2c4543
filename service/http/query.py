"""Query strings: each parameter of its own type, once, or refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from service.http.asked import LISTS, PARAMETERS, Asked, Limits
from service.http.errors import Refusal
from service.http.schemas import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from service.settings import Settings

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_FLAGS = {"true": True, "false": False}
_TOO_LARGE = 10
"""Digits of a number that no limit allows."""
_NAMES = frozenset(PARAMETERS)


def parameters(query: bytes, names: AbstractSet[str] = _NAMES) -> dict[str, Any] | Refusal:
    """Return what a query string says.

    Args:
        query: As it came, still percent-encoded.
        names: The parameters that count; others are passed over.

    Returns:
        Name to value: a number, a flag, a list of ids or text. Bytes that are no UTF-8 are lone surrogates in it.
    """
    text = query.decode("utf-8", "surrogateescape")
    encoded = "%" in text or "+" in text
    given: dict[str, Any] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if encoded:
            name, value = _decode(name), _decode(value)
        if name not in names:
            continue
        if name in LISTS:
            given.setdefault(name, []).append(value)
        elif name in given:
            return Refusal(ErrorCode.REPEATED_PARAMETER, name)
        elif name in _TYPED:
            typed = _TYPED[name](value)
            if isinstance(typed, Refusal):
                return typed
            given[name] = typed
        else:
            given[name] = value
    return given


def _decode(text: str) -> str:
    return unquote(text.replace("+", " "), errors="surrogateescape")


def _whole(text: str, code: ErrorCode) -> int | Refusal:
    if not (text.isascii() and text.isdigit()):
        return Refusal(code)
    return int(text) if len(text) < _TOO_LARGE else Refusal(code)


def _flag(text: str) -> bool | Refusal:
    flag = _FLAGS.get(text.lower())
    return Refusal(ErrorCode.INVALID_FLAG, "exclude_seen") if flag is None else flag


def _score(text: str) -> float | Refusal:
    return float(text) if _NUMBER.fullmatch(text) else Refusal(ErrorCode.INVALID_SCORE)


_TYPED = {
    "k": lambda text: _whole(text, ErrorCode.INVALID_K),
    "limit": lambda text: _whole(text, ErrorCode.INVALID_LIMIT),
    "exclude_seen": _flag,
    "min_score": _score,
}


class QueryReader:
    """Reads the query strings of requests for recommendations.

    Args:
        settings: Limits of a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(settings)

    def __call__(self, query: bytes) -> Asked | Refusal:
        """Return what is asked for, or why it is refused."""
        given = parameters(query)
        return given if isinstance(given, Refusal) else self._limits.asked(given)
