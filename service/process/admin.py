"""The admin endpoint: what is served, and a reload on demand. On the loopback address alone, for who has the token."""

from __future__ import annotations

import hmac
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from service.observe.page import page
from service.process.server import server_config
from service.process.supervisor import Outcome, StoppingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from service.observe.cells import Cells

JSON = "application/json"


class Supervised(Protocol):
    """What the endpoint asks, and asks for."""

    def status(self) -> dict[str, Any]:
        """Return what is served, by whom, and how the latest reload went."""

    async def reload(self) -> Outcome:
        """Reload what is published now, and say how that went."""


def create_admin(supervisor: Supervised, token: str, cells: Cells) -> FastAPI:
    """Return the application.

    Args:
        supervisor: Does what is asked for.
        token: What a request must carry, as ``Authorization: Bearer TOKEN``.
        cells: Where everything that is measured can be read, also when no worker answers.
    """
    app = FastAPI(title="dvib-serve admin", docs_url=None, redoc_url=None, openapi_url=None)
    wanted = f"Bearer {token}".encode()

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, wanted):
            reply = _error(HTTPStatus.UNAUTHORIZED, "unauthorized", "wanted Authorization: Bearer TOKEN")
            reply.headers["WWW-Authenticate"] = "Bearer"
            return reply
        return await proceed(request)

    @app.get("/status")
    async def status() -> Response:
        return _json(supervisor.status())

    @app.get("/metrics")
    def metrics() -> Response:
        content, media_type = page(cells)
        return Response(content, media_type=media_type)

    @app.post("/reload")
    async def reload() -> Response:
        try:
            outcome = await supervisor.reload()
        except StoppingError:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the service ends")
        if outcome.state == "failed":
            return _error(HTTPStatus.CONFLICT, "reload_failed", outcome.reason)
        return _json({"models": supervisor.status()["models"]})

    return app


def _json(document: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(document), status_code=status, media_type=JSON)


def _error(status: HTTPStatus, code: str, message: str) -> Response:
    return _json({"error": {"code": code, "message": message}}, status)


class AdminServer(uvicorn.Server):
    """A server in an event loop that has other things to do, signals among them."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(server_config(app))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the supervisor."""
        yield
