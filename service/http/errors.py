"""Error replies: fixed codes and sentences, never the text of an exception."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.http.schemas import ErrorCode, ErrorReply

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.settings import Settings

JSON = "application/json"

_ERRORS: dict[ErrorCode, tuple[HTTPStatus, str]] = {
    ErrorCode.MISSING_USER_ID: (HTTPStatus.UNPROCESSABLE_ENTITY, "the query parameter user_id is missing"),
    ErrorCode.INVALID_ID: (HTTPStatus.UNPROCESSABLE_ENTITY, "user_id is empty, holds a NUL character or is no UTF-8"),
    ErrorCode.ID_TOO_LONG: (HTTPStatus.UNPROCESSABLE_ENTITY, "user_id is longer than {max_id_bytes} UTF-8 bytes"),
    ErrorCode.INVALID_K: (HTTPStatus.UNPROCESSABLE_ENTITY, "k must be a whole number from 1 to {max_k}"),
    ErrorCode.INVALID_REQUEST: (HTTPStatus.BAD_REQUEST, "the request cannot be understood"),
    ErrorCode.UNKNOWN_MODEL: (HTTPStatus.NOT_FOUND, "no such model; GET /models lists them"),
    ErrorCode.NOT_FOUND: (HTTPStatus.NOT_FOUND, "no such path; GET /docs describes the service"),
    ErrorCode.METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "this path does not take this method"),
    ErrorCode.NOT_READY: (HTTPStatus.SERVICE_UNAVAILABLE, "the models are not loaded"),
    ErrorCode.OVERLOADED: (HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting; try again"),
    ErrorCode.INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed; its log says why"),
}
_BY_PARAMETER = {"user_id": ErrorCode.MISSING_USER_ID, "k": ErrorCode.INVALID_K}
_BY_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}


class Errors:
    """The error replies of one application.

    Args:
        settings: Limits that the sentences name.
    """

    def __init__(self, settings: Settings) -> None:
        limits = {"max_k": settings.max_k, "max_id_bytes": settings.max_id_bytes}
        self._documents = {
            code: {"error": {"code": code.value, "message": text.format(**limits)}}
            for code, (_, text) in _ERRORS.items()
        }

    def reply(self, code: ErrorCode, headers: dict[str, str] | None = None) -> Response:
        """Return the reply for a code."""
        return Response(
            orjson.dumps(self._documents[code]), status_code=_ERRORS[code][0], media_type=JSON, headers=headers
        )

    def documented(self, *codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
        """Return the OpenAPI ``responses`` for the codes that a route can reply."""
        responses: dict[int | str, dict[str, Any]] = {}
        for code in codes:
            status = _ERRORS[code][0]
            entry = responses.setdefault(
                int(status),
                {"model": ErrorReply, "description": status.phrase, "content": {JSON: {"examples": {}}}},
            )
            entry["content"][JSON]["examples"][code.value] = {"value": self._documents[code]}
        return responses

    def install(self, app: FastAPI) -> None:
        """Make every error of the application a reply of this kind.

        An unexpected exception becomes ``internal``; Starlette raises it again after the reply, so that the server
        logs its traceback.
        """

        @app.exception_handler(RequestValidationError)
        async def invalid(_request: Request, error: RequestValidationError) -> Response:
            parameter = str(error.errors()[0]["loc"][-1])
            return self.reply(_BY_PARAMETER.get(parameter, ErrorCode.INVALID_REQUEST))

        @app.exception_handler(HTTPException)
        async def http(_request: Request, error: HTTPException) -> Response:
            headers = dict(error.headers) if error.headers else None
            return self.reply(_BY_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST), headers)

        @app.exception_handler(Exception)
        async def internal(_request: Request, _error: Exception) -> Response:
            return self.reply(ErrorCode.INTERNAL)
