"""HTTP/1.1 connections on which nobody may dawdle: uvicorn's own protocol waits for a request's headers for ever.

Most requests for recommendations go the straight way, `service.http.straight`, all others through ASGI.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.gate import GONE, MOST_URI_BYTES, REQUEST_ID, TASK, has_body
from service.http.ledger import OTHER
from service.http.reply import CLOSE
from service.http.schemas import ErrorCode
from service.http.straight import PATH, Straight

if TYPE_CHECKING:
    import asyncio

    from service.http.gate import Gate
    from service.http.reply import Header, Reply
    from service.settings import Settings

_MOST_HEAD_BYTES = 2 * MOST_URI_BYTES
_MOST_HEADERS = 1000
_PIECE = 2**13
"""Bytes that are parsed at once: of headers without end no more than it takes to see that they are too many."""


class Protocol(HttpToolsProtocol):
    """One connection.

    A request's headers must be complete ``read_timeout_s`` after the connection or, on one that is kept alive, after
    its first byte; else 408. So long may also last what follows a reply: the rest of a refused body. A client that
    does not take its reply in is cut off after as long. What a client that has gone was waiting for is given up.

    Only HTTP/1 is spoken: who asks for another protocol beside his request gets the request answered. Trailers are
    passed over, and neither they nor chunk extensions go on for long.

    Attributes:
        gate: The application; `to` makes the class for it.
        settings: Of the service.
    """

    gate: Gate
    settings: Settings

    @classmethod
    def to(cls, gate: Gate, settings: Settings) -> type[Protocol]:
        """Return the class for uvicorn's ``http``, where the gate is the application that it serves."""
        return type(cls.__name__, (cls,), {"gate": gate, "settings": settings})

    _straight: Straight | None = None
    _patience: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _fed = False
    _replied = False
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._lose_patience()
        self.resume_writing()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._straight is not None:
            self._straight.abandon()
        elif self._working():
            scope = cast("dict[str, Any]", self.scope)
            scope[GONE] = True
            task: asyncio.Task[None] | None = scope.get(TASK)
            if task is not None:
                task.cancel()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if len(data) <= _PIECE:
            self._take(data)
            return
        whole = memoryview(data)
        for start in range(0, len(data), _PIECE):
            if self.transport.is_closing():
                return
            self._take(whole[start : start + _PIECE])

    def _take(self, data: bytes | memoryview) -> None:
        self._replied = False
        self._feed(data)
        if self._replied:
            self._lose_patience()
            if not self._in_head():
                return
        answering = self._working() and not self._in_head()
        if answering:
            if self._patience is not None:
                self._lose_patience()
            if not self.cycle.more_body:
                return
        self._head_bytes = 0 if self._fed else self._head_bytes + len(data)
        self._fed = False
        if self._head_bytes > _MOST_HEAD_BYTES or (self._in_head() and len(self.headers) > _MOST_HEADERS):
            long_uri = len(self.url) > MOST_URI_BYTES
            self._refuse(ErrorCode.URI_TOO_LONG if long_uri else ErrorCode.HEADERS_TOO_LONG)
        elif not answering and self._patience is None:
            self._be_patient()

    def _feed(self, data: bytes | memoryview) -> None:
        """Parse, and log nothing of what is no HTTP: anybody could fill the log with it."""
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    data = memoryview(data)[upgrade.args[0] :]
                    self._stay()
        except httptools.HttpParserError:
            self.send_400_response("")

    def _stay(self) -> None:
        """Parse a request that asks for another protocol once more, as one that does not.

        The parser has passed over its body, which would be taken for the next request.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError
        head = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        head += [
            b"%b: %b" % (name, _staying(value) if name == b"connection" else value) for name, value in self.headers
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*head, b"", b""]))

    def on_headers_complete(self) -> None:
        """See uvicorn."""
        if not self.parser.should_upgrade():
            if not self._goes_straight():
                super().on_headers_complete()
            self.headers = []  # what trailers add is no part of the request

    def _goes_straight(self) -> bool:
        """Take the straight way, if it leads to where the request wants to go and nothing stands in it."""
        desk = self.gate.desk
        if desk is None or not self.url.startswith(PATH) or self.parser.get_method() != b"POST":
            return False
        if self._working() or self.flow.write_paused:
            return False
        headers, url = dict(self.headers), httptools.parse_url(self.url)
        if url.path != PATH or b"expect" in headers or has_body(headers):
            return False
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        self._straight = Straight(self.gate, desk, self._reply_straight, keep_alive=keep_alive)
        self.cycle = cast("Any", self._straight)
        self._straight.begin(cast("dict[str, Any]", self.scope), headers, url.query or b"")
        return True

    def _reply_straight(self, reply: Reply, more: tuple[Header, ...]) -> None:
        self._straight = None
        self._replied = True
        self._write(reply, *more)
        if self.pipeline:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._keep_alive(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, if it has been idle for long enough.

        One timer after another looks after a connection, however many requests come: to set and to cancel one for each
        would take longer than many another part of a reply.
        """
        self.timeout_keep_alive_task = None
        if self.transport.is_closing() or self._working() or self._in_head():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive(left)
        else:
            self.transport.close()

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def on_body(self, body: bytes) -> None:
        """See uvicorn."""
        self._fed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See uvicorn."""
        if not self.parser.should_upgrade() and self.cycle.more_body:
            super().on_message_complete()

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
        if self.cycle is not None and not self._in_head() and self.cycle.response_started and self.cycle.more_body:
            self.transport.close()  # this is the rest of a request that has its reply
            return
        reply = self.gate.errors.reply(code)
        metrics = self.gate.ledger.metrics
        metrics.reply(OTHER, "", reply.status, 0.0)
        metrics.refused(reply.code)
        close = () if CLOSE in reply.headers else (CLOSE,)
        self._write(reply, (REQUEST_ID, secrets.token_hex(8).encode()), *close)

    def _write(self, reply: Reply, *more: Header) -> None:
        """Write a whole reply, in one piece, and close the connection if a header says so."""
        if self.transport.is_closing():
            return
        headers = reply.headed(*more)
        parts = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*parts, b"\r\n", reply.body)))
        if CLOSE in headers:
            self.transport.close()


def _staying(connection: bytes) -> bytes:
    """Return a Connection header without the wish for another protocol."""
    return b",".join(option for option in connection.split(b",") if option.strip().lower() != b"upgrade")
