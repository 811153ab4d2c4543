"""HTTP/1.1 connections on which nobody may dawdle: uvicorn's own protocol waits for a request's headers for ever."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.errors import Errors
from service.http.gate import GONE, MOST_URI_BYTES, REQUEST_ID, TASK
from service.http.ledger import OTHER
from service.http.reply import CLOSE, JSON
from service.http.schemas import ErrorCode
from service.observe.metrics import Metrics

if TYPE_CHECKING:
    import asyncio

    from service.settings import Settings

_MOST_HEAD_BYTES = 2 * MOST_URI_BYTES


class Protocol(HttpToolsProtocol):
    """One connection.

    A request's headers must be complete ``read_timeout_s`` after the connection or, on one that is kept alive, after
    its first byte; else 408. So long may also last what follows a reply: the rest of a refused body. A client that
    does not take its reply in is cut off after as long. What a client that has gone was waiting for is given up.

    Attributes:
        settings: Of the service; `with_settings` makes the class for them.
        errors: Error replies.
        metrics: Of the process.
    """

    settings: Settings
    errors: Errors
    metrics: Metrics

    @classmethod
    def with_settings(cls, settings: Settings, metrics: Metrics | None = None) -> type[Protocol]:
        """Return the class for uvicorn's ``http``."""
        own = {"settings": settings, "errors": Errors(settings), "metrics": metrics or Metrics({})}
        return type(cls.__name__, (cls,), own)

    _patience: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._lose_patience()
        self.resume_writing()
        super().connection_lost(exc)
        if self._working():
            scope = cast("dict[str, Any]", self.scope)
            scope[GONE] = True
            task: asyncio.Task[None] | None = scope.get(TASK)
            if task is not None:
                task.cancel()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        in_head = self._in_head()
        if not in_head and self._working():
            if self._patience is not None:
                self._lose_patience()
            return
        self._head_bytes += len(data)
        if in_head and self._head_bytes > _MOST_HEAD_BYTES:
            long_uri = len(self.url) > MOST_URI_BYTES
            self._refuse(ErrorCode.URI_TOO_LONG if long_uri else ErrorCode.HEADERS_TOO_LONG)
        elif self._patience is None:
            self._be_patient()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (the sentence is ours)
        """Refuse what is no HTTP, or an address that the parser does not take for its length."""
        url: bytes = getattr(self, "url", b"")
        self._refuse(ErrorCode.INVALID_REQUEST if len(url) <= MOST_URI_BYTES else ErrorCode.URI_TOO_LONG)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.settings.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def _working(self) -> bool:
        """Whether a request is complete up to its headers and not yet answered: the gate looks after that."""
        return self.cycle is not None and not self.cycle.response_complete

    def _in_head(self) -> bool:
        """Whether a request has begun whose headers are not complete."""
        return self.scope is not None and "method" not in self.scope

    def _be_patient(self) -> None:
        self._patience = self.loop.call_later(self.settings.read_timeout_s, self._end)

    def _lose_patience(self) -> None:
        self._head_bytes = 0
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end(self) -> None:
        self._patience = None
        if self._working():
            return
        if self._in_head():
            self._refuse(ErrorCode.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, code: ErrorCode) -> None:
        """Write a reply past the application, which knows nothing of this request, and close."""
        self._lose_patience()
        if self.transport.is_closing():
            return
        reply = self.errors.reply(code)
        self.metrics.reply(OTHER, "", reply.status, 0.0)
        self.metrics.refused(reply.code)
        headers = (
            (b"content-type", JSON.encode()),
            (b"content-length", b"%d" % len(reply.body)),
            (REQUEST_ID, secrets.token_hex(8).encode()),
            CLOSE,
        )
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[reply.status] + head + b"\r\n" + reply.body)
        self.transport.close()
