"""The query parameters of a request for recommendations: read once, refused as FastAPI's own validation would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast
from urllib.parse import parse_qsl

from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import Field, TypeAdapter, ValidationError

from service.http.schemas import ErrorCode

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from service.settings import Settings


class Asked(NamedTuple):
    """What a request asks for; ``model`` is None where it names none."""

    user_id: str
    k: int
    model: str | None


class QueryReader:
    """Reads query strings.

    Args:
        settings: Limits of a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._default_k = settings.default_k
        self._max_id_bytes = settings.max_id_bytes
        self._k = TypeAdapter[int](Annotated[int, Field(ge=1, le=settings.max_k)])

    def __call__(self, query: bytes) -> Asked | ErrorCode:
        """Return what is asked for, or why it is refused. Of a parameter given twice, the last counts."""
        # Bytes that are no UTF-8 become lone surrogates, which no encoding of text gives.
        values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="surrogateescape"))
        user_id = values.get("user_id")
        if user_id is None:
            return ErrorCode.MISSING_USER_ID
        k = values.get("k", self._default_k)
        try:
            k = self._k.validate_python(k)
        except ValidationError:
            return ErrorCode.INVALID_K
        refusal = self._refuse_id(user_id)
        return Asked(user_id, k, values.get("model")) if refusal is None else refusal

    def _refuse_id(self, user_id: str) -> ErrorCode | None:
        if not user_id or "\0" in user_id:
            return ErrorCode.INVALID_ID
        try:
            length = len(user_id.encode())
        except UnicodeEncodeError:
            return ErrorCode.INVALID_ID
        return ErrorCode.ID_TOO_LONG if length > self._max_id_bytes else None


def reading(read: QueryReader, refuse: Callable[[ErrorCode], Response]) -> type[APIRoute]:
    """Return a class of routes whose parameters FastAPI documents and a reader reads.

    FastAPI's general way from a request to three values, and to a reply, takes as long as finding the answer.

    Args:
        read: Query string → what is asked for, or why it is refused.
        refuse: The reply to a refusal.
    """

    class ReadingRoute(APIRoute):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.app = self._respond

        async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
            answer = cast("Callable[[str, int, str | None], Awaitable[Response]]", self.endpoint)
            asked = read(scope["query_string"])
            response = refuse(asked) if isinstance(asked, ErrorCode) else await answer(*asked)
            await response(scope, receive, send)

    return ReadingRoute
