"""JSON bodies: read strictly, each field of its own type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from service.http.asked import LISTS, PARAMETERS, Asked, Limits
from service.http.errors import Refusal
from service.http.query import parameters
from service.http.schemas import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.settings import Settings

_NO_OBJECT = Refusal(ErrorCode.INVALID_BODY, "the body is no JSON object")
_UNKNOWN_FIELD = Refusal(ErrorCode.INVALID_BODY, "the body has a field that does not belong there")
_NO_REQUESTS = Refusal(ErrorCode.INVALID_BODY, "requests must be a list of one or more objects")
_TEXTS = ("user_id", "model", "category")
_MEDIA_TYPE = b"application/json"
LARGE = 2**15
"""Bytes of a body from which on it is read in a thread, and its fields are counted first: others do not wait for it."""
_MORE_FIELDS = 1000
"""Fields that a large body may have beyond those that belong there, for the first wrong one to be named."""


def is_json(content_type: bytes) -> bool:
    """Say whether a Content-Type means JSON in UTF-8: the only parameter that it may have is that charset."""
    media_type, _, rest = content_type.partition(b";")
    if media_type.strip().lower() != _MEDIA_TYPE:
        return False
    name, _, value = rest.partition(b"=")
    return not rest.strip() or (name.strip().lower() == b"charset" and value.strip(b' \t"').lower() == b"utf-8")


class BodyReader:
    """Reads the bodies of requests for recommendations.

    Args:
        settings: Limits of a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(settings)
        self._max_requests = settings.max_requests
        self._most_fields = len(PARAMETERS) * (settings.max_requests + 1) + _MORE_FIELDS

    def one(self, body: bytes, query: bytes) -> Asked | Refusal:
        """Return what a body asks for, together with a query string; each parameter comes from one of both."""
        document, given = self._object(body), parameters(query)
        if isinstance(given, Refusal):
            return given
        if isinstance(document, Refusal):
            return document
        more = _fields(document)
        if isinstance(more, Refusal):
            return more
        twice = next((name for name in PARAMETERS if name in given and name in more), None)
        if twice is not None:
            return Refusal(ErrorCode.REPEATED_PARAMETER, twice)
        return self._limits.asked({**given, **more})

    def many(self, body: bytes) -> list[Asked] | Refusal:
        """Return what a batch asks for, or why its first wrong request is refused."""
        document = self._object(body)
        if isinstance(document, Refusal):
            return document
        requests = document.get("requests")
        if not isinstance(requests, list) or not requests:
            return _NO_REQUESTS
        if len(document) > 1:
            return _UNKNOWN_FIELD
        if len(requests) > self._max_requests:
            return Refusal(ErrorCode.TOO_MANY_REQUESTS_IN_BATCH)
        return self._each(requests)

    def _object(self, body: bytes) -> dict[str, Any] | Refusal:
        # To read a hundred thousand fields takes tens of milliseconds, in which nothing else runs in this process.
        if len(body) >= LARGE and n_fields(body) > self._most_fields:
            return _UNKNOWN_FIELD
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _NO_OBJECT
        return document if isinstance(document, dict) else _NO_OBJECT

    def _each(self, requests: Sequence[Any]) -> list[Asked] | Refusal:
        read: list[Asked] = []
        for position, request in enumerate(requests):
            given = _fields(request) if isinstance(request, dict) else _NO_REQUESTS
            asked = given if isinstance(given, Refusal) else self._limits.asked(given)
            if isinstance(asked, Refusal):
                return asked._replace(position=position)
            read.append(asked)
        return read


def n_fields(body: bytes) -> int:
    """Count the fields of all objects in a JSON document: the colons outside of strings. NumPy lets others run."""
    data = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    colons = np.flatnonzero(data == ord(":"))
    quotes = np.flatnonzero(data == ord('"'))
    return int(np.count_nonzero(np.searchsorted(quotes, colons) % 2 == 0))


def _fields(document: Mapping[str, Any]) -> dict[str, Any] | Refusal:
    """Return the fields that are given; null stands for one that is not."""
    if not document.keys() <= _NAMES:
        return _UNKNOWN_FIELD
    given = {name: value for name, value in document.items() if value is not None}
    for name, value in given.items():
        wrong = _wrong_type(name, value)
        if wrong is not None:
            return wrong
    if "min_score" in given:
        given["min_score"] = float(given["min_score"])
    return given


def _wrong_type(name: str, value: object) -> Refusal | None:
    # A flag is no number here, though Python has it so.
    if name in _TEXTS:
        return None if type(value) is str else Refusal(ErrorCode.INVALID_BODY, f"{name} must be a string")
    if name in LISTS:
        right = type(value) is list and set(map(type, value)) <= {str}
        return None if right else Refusal(ErrorCode.INVALID_BODY, f"{name} must be a list of strings")
    if name == "k":
        return None if type(value) is int else Refusal(ErrorCode.INVALID_K)
    if name == "exclude_seen":
        return None if type(value) is bool else Refusal(ErrorCode.INVALID_FLAG, name)
    return None if type(value) in {int, float} else Refusal(ErrorCode.INVALID_SCORE)


_NAMES = frozenset(PARAMETERS)
