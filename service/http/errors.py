"""Error replies: fixed codes and sentences, never the text of an exception and nothing of what was sent."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from service.http.reply import CLOSE, JSON, REPLY, Header, Reply
from service.http.schemas import ErrorCode, ErrorReply

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.settings import Settings

_WRONG = HTTPStatus.UNPROCESSABLE_ENTITY
_ERRORS: dict[ErrorCode, tuple[HTTPStatus, str]] = {
    ErrorCode.MISSING_USER_ID: (_WRONG, "user_id is missing"),
    ErrorCode.INVALID_ID: (_WRONG, "{what} is or holds an id that is empty, has a NUL character or is no UTF-8"),
    ErrorCode.ID_TOO_LONG: (_WRONG, "{what} is or holds an id longer than {max_id_bytes} UTF-8 bytes"),
    ErrorCode.TOO_MANY_IDS: (_WRONG, "{what} holds more than {most_ids} ids"),
    ErrorCode.INVALID_K: (_WRONG, "k must be a whole number from 1 to {max_k}"),
    ErrorCode.INVALID_LIMIT: (_WRONG, "limit must be a whole number from 1 to {max_k}"),
    ErrorCode.INVALID_FLAG: (_WRONG, "{what} must be true or false"),
    ErrorCode.INVALID_SCORE: (_WRONG, "min_score must be a finite number"),
    ErrorCode.REPEATED_PARAMETER: (_WRONG, "{what} is given more than once"),
    ErrorCode.INVALID_BODY: (_WRONG, "{what}"),
    ErrorCode.TOO_MANY_REQUESTS_IN_BATCH: (_WRONG, "a batch holds at most {max_requests} requests"),
    ErrorCode.UNKNOWN_CATEGORY: (_WRONG, "no such category; GET /models lists those of each model"),
    ErrorCode.UNKNOWN_MODEL: (HTTPStatus.NOT_FOUND, "no such model; GET /models lists them"),
    ErrorCode.UNKNOWN_USER: (HTTPStatus.NOT_FOUND, "the model knows no such user"),
    ErrorCode.UNKNOWN_ITEM: (HTTPStatus.NOT_FOUND, "the model knows no such item"),
    ErrorCode.INVALID_REQUEST: (HTTPStatus.BAD_REQUEST, "the request cannot be understood"),
    ErrorCode.UNAUTHORIZED: (HTTPStatus.UNAUTHORIZED, "the key is missing or wrong; send Authorization: Bearer KEY"),
    ErrorCode.NOT_FOUND: (HTTPStatus.NOT_FOUND, "no such path; GET /docs describes the service"),
    ErrorCode.METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "this path does not take this method"),
    ErrorCode.REQUEST_TIMEOUT: (HTTPStatus.REQUEST_TIMEOUT, "the request was not sent within {read_timeout_s:g} s"),
    ErrorCode.BODY_TOO_LONG: (
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "the request's body is longer than {max_body_bytes} bytes",
    ),
    ErrorCode.URI_TOO_LONG: (HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long; send a JSON body instead"),
    ErrorCode.HEADERS_TOO_LONG: (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's headers are too long"),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "a body must be application/json, in UTF-8, not compressed",
    ),
    ErrorCode.INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed; its log says why"),
    ErrorCode.NOT_READY: (HTTPStatus.SERVICE_UNAVAILABLE, "the models are not loaded, or the service is ending"),
    ErrorCode.OVERLOADED: (HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting; try again"),
    ErrorCode.TIMED_OUT: (HTTPStatus.GATEWAY_TIMEOUT, "no answer within {request_timeout_s:g} s"),
}
_HEADERS: dict[ErrorCode, tuple[Header, ...]] = {
    ErrorCode.OVERLOADED: ((b"retry-after", b"1"),),
    ErrorCode.UNAUTHORIZED: ((b"www-authenticate", b"Bearer"),),
    ErrorCode.REQUEST_TIMEOUT: (CLOSE,),
    ErrorCode.BODY_TOO_LONG: (CLOSE,),
    ErrorCode.URI_TOO_LONG: (CLOSE,),
    ErrorCode.HEADERS_TOO_LONG: (CLOSE,),
}
_BY_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
_LIMITS = ("max_k", "max_id_bytes", "max_requests", "max_body_bytes", "read_timeout_s", "request_timeout_s")


class Refusal(NamedTuple):
    """Why a request is refused.

    Attributes:
        code: The kind of error.
        what: The parameter's name or, of an invalid body, the whole sentence: from a fixed set, never from the request.
        position: Which request of a batch.
    """

    code: ErrorCode
    what: str = "user_id"
    position: int | None = None


class Errors:
    """The error replies of one application.

    Args:
        settings: Limits that the sentences name.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = {name: getattr(settings, name) for name in _LIMITS}
        self._most_ids = {"history": settings.max_history}
        self._max_filter_ids = settings.max_filter_ids
        self.reply = lru_cache(maxsize=1024)(self._reply)

    def _document(self, refusal: Refusal) -> dict[str, Any]:
        code, what, position = refusal
        most_ids = self._most_ids.get(what, self._max_filter_ids)
        message = _ERRORS[code][1].format(what=what, most_ids=most_ids, **self._limits)
        if position is not None:
            message = f"requests[{position}]: {message}"
        return {"error": {"code": code.value, "message": message}}

    def _reply(self, refusal: Refusal | ErrorCode, headers: tuple[Header, ...] = ()) -> Reply:
        """Return the reply to what is refused; kept, because those who are refused come again."""
        if isinstance(refusal, ErrorCode):
            refusal = Refusal(refusal)
        code = refusal.code
        body = orjson.dumps(self._document(refusal))
        return Reply(int(_ERRORS[code][0]), body, (*_HEADERS.get(code, ()), *headers), code=code.value)

    def documented(self, *codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
        """Return the OpenAPI ``responses`` for the codes that a route can reply."""
        responses: dict[int | str, dict[str, Any]] = {}
        for code in codes:
            status = _ERRORS[code][0]
            entry = responses.setdefault(
                int(status),
                {"model": ErrorReply, "description": status.phrase, "content": {JSON: {"examples": {}}}},
            )
            what = "the body is no JSON object" if code is ErrorCode.INVALID_BODY else "user_id"
            entry["content"][JSON]["examples"][code.value] = {"value": self._document(Refusal(code, what))}
        return responses

    def install(self, app: FastAPI) -> None:
        """Make every error of the application a reply of this kind.

        An unexpected exception becomes ``internal``; Starlette raises it again after the reply, so that whoever
        called the application logs its traceback.
        """

        @app.exception_handler(HTTPException)
        async def http(request: Request, error: HTTPException) -> Response:
            reply = self.reply(_BY_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST))
            request.scope[REPLY] = reply
            return Response(reply.body, reply.status, dict(error.headers or {}), JSON)

        @app.exception_handler(Exception)
        async def internal(request: Request, _error: Exception) -> Response:
            reply = self.reply(ErrorCode.INTERNAL)
            request.scope[REPLY] = reply
            return Response(reply.body, reply.status, media_type=JSON)
