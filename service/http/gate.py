"""The outermost layer: whom the service lets in, how many at once, and for how long."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from service.http.errors import Errors
from service.http.ledger import Ledger
from service.http.reading import BodyTooLongError, ClientGoneError, NoRoomError, linger, read_body, replay
from service.http.reply import CLOSE, REPLY, Header, Reply
from service.http.schemas import ErrorCode
from service.http.timing import ASKED_FOR, timed
from service.observe.logs import request_id
from service.page.route import PATHS

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.http.desk import Desk
    from service.settings import Settings

_LOG = logging.getLogger(__name__)
REQUEST_ID = b"x-request-id"
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HEALTH = frozenset({"/healthz", "/readyz"})
_READY = "/readyz"
MOST_URI_BYTES = 2**15
_MOST_HELD, _MOST_HELD_BODIES = 2**26, 4
"""Bytes of all bodies in work, or of so many of the longest: more requests may be in work than memory has room for."""
_UNREAD = {ErrorCode.BODY_TOO_LONG.value, ErrorCode.OVERLOADED.value}
"""Replies that, where they close the connection, come before the end of the request's body."""
TASK = "dvib.task"
"""Key of a scope, by which the protocol finds the task of a request whose client is gone."""
GONE = "dvib.gone"
"""Key of a scope that says so."""
_SENDER = "dvib.sender"
_CHUNKED = b"chunked"
_BEGAN = "dvib.began"


class _Sender:
    """Sends what the application replies, with more headers, and knows how far it has come."""

    __slots__ = ("_more", "_note", "_send", "complete", "started")

    def __init__(self, send: Send, more: tuple[Header, ...], note: Callable[[int], None]) -> None:
        self._send = send
        self._more = more
        self._note = note
        self.started = self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._note(message["status"])
            message["headers"] = [*message.get("headers", ()), *self._more]
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)


class Work(Protocol):
    """A request in work."""

    def cancel(self) -> object:
        """Give it up: it takes too long."""


class Gate:
    """An ASGI application around the service's own.

    It refuses what needs no look at the models, gives every reply a request id, and gives up what takes too long. What
    goes past the framework, see `service.http.straight`, comes by here, too.

    Make it in the process that serves: the request ids begin with a prefix of its own.

    Args:
        app: From `service.http.app.create_app`; another application has no desk.
        settings: Limits.

    Attributes:
        draining: Set it when the process ends: replies then close their connections, and the service is not ready.
        desk: The application's.
        errors: Error replies.
        ledger: Notes every reply.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.draining = False
        self._app: ASGIApp = app
        self.desk: Desk | None = getattr(app.state, "desk", None)
        self.errors = Errors(settings)
        self.ledger = Ledger(app, access_log=settings.access_log)
        self._max_in_flight = settings.max_in_flight
        self._max_body_bytes = settings.max_body_bytes
        self._read_timeout_s = settings.read_timeout_s
        self._timeout_s = settings.request_timeout_s
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._prefix = secrets.token_hex(4).encode()
        self._numbers = itertools.count(1)
        self._most_held = max(_MOST_HELD, _MOST_HELD_BODIES * settings.max_body_bytes)
        self._held = 0
        self._work: dict[Work, float] = {}
        self._late: set[Work] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """How many requests are in work."""
        return len(self._work)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = scope[_BEGAN] = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        more = self.more(headers)
        request_id.set(more[0][1])
        if ASKED_FOR in headers:
            send = timed(send, began)
        reply = self.refuse(scope["path"], scope["query_string"], headers)
        if reply is None:
            reply = await self._work_on(scope, headers, receive, send, more)
        if reply is not None:
            self.ledger.note(scope, reply.status, reply, began)
            await self._reply(reply, headers, receive, send, more)

    def more(self, headers: MutableMapping[bytes, bytes]) -> tuple[Header, ...]:
        """Return the headers of every reply: the request's id and, in the end, that the connection closes."""
        given = headers.get(REQUEST_ID)
        if given is None or not _GIVEN_ID.fullmatch(given):
            given = b"%b-%x" % (self._prefix, next(self._numbers))
        return ((REQUEST_ID, given), CLOSE) if self.draining else ((REQUEST_ID, given),)

    def refuse(self, path: str, query: bytes, headers: MutableMapping[bytes, bytes]) -> Reply | None:
        """Return the reply to a request that is not let in."""
        if path in HEALTH:
            return self.errors.reply(ErrorCode.NOT_READY) if self.draining and path == _READY else None
        if self._key is not None and not self._carries(self._key, headers) and path not in PATHS:
            return self.errors.reply(ErrorCode.UNAUTHORIZED)
        if len(self._work) >= self._max_in_flight:
            return self.errors.reply(ErrorCode.OVERLOADED)
        if len(query) + len(path) > MOST_URI_BYTES:
            return self.errors.reply(ErrorCode.URI_TOO_LONG)
        if _length(headers) > self._max_body_bytes:
            return self.errors.reply(ErrorCode.BODY_TOO_LONG)
        return None

    def enter(self, work: Work) -> None:
        """Take something into work, until it leaves; it is cancelled if that takes too long."""
        loop = asyncio.get_running_loop()
        self._work[work] = loop.time()
        self.ledger.metrics.in_flight[0] = len(self._work)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._give_up_late)

    def leave(self, work: Work) -> None:
        """Have no more to do with it."""
        self._work.pop(work, None)
        self._late.discard(work)
        self.ledger.metrics.in_flight[0] = len(self._work)

    def is_late(self, work: Work) -> bool:
        """Tell whether something is given up because it takes too long."""
        return work in self._late

    @staticmethod
    def _carries(key: bytes, headers: MutableMapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given.strip(), key)

    async def _work_on(
        self,
        scope: Scope,
        headers: MutableMapping[bytes, bytes],
        receive: Receive,
        send: Send,
        more: tuple[Header, ...],
    ) -> Reply | None:
        """Return the reply; None where the application has sent it already, or nobody waits for it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.enter(task)
        scope[TASK] = task
        try:
            if has_body(headers):
                return await self._with_body(scope, headers, receive, send, more)
            await self._through(scope, receive, send, more)
            return None
        except asyncio.CancelledError:
            late = self.is_late(task)
            if GONE in scope:
                task.uncancel()
                return None
            if not late or _begun(scope):
                raise
            task.uncancel()
            return self.errors.reply(ErrorCode.TIMED_OUT)
        except Exception:
            _LOG.exception("a request failed")
            if _begun(scope) and not scope[_SENDER].complete:
                raise
            return None if _begun(scope) else self.errors.reply(ErrorCode.INTERNAL)
        finally:
            self.leave(task)
            del scope[TASK]  # what is left is to send the reply

    async def _with_body(
        self,
        scope: Scope,
        headers: MutableMapping[bytes, bytes],
        receive: Receive,
        send: Send,
        more: tuple[Header, ...],
    ) -> Reply | None:
        if headers.get(b"transfer-encoding", _CHUNKED).lower() != _CHUNKED:
            return self.errors.reply(ErrorCode.INVALID_REQUEST, (CLOSE,))
        parts: list[int] = []
        try:
            body = await self._read(receive, parts)
            if not isinstance(body, bytes):
                return body
            await self._through(scope, replay(body, receive), send, more)
            return None
        finally:
            self._held -= sum(parts)

    async def _read(self, receive: Receive, parts: list[int]) -> bytes | Reply | None:
        """Return a body, or the reply where it is not to be had; note how long its parts are."""

        def take(length: int) -> None:
            if self._held + length > self._most_held:
                raise NoRoomError
            self._held += length
            parts.append(length)

        try:
            async with asyncio.timeout(self._read_timeout_s):
                return await read_body(receive, self._max_body_bytes, take)
        except TimeoutError:
            return self.errors.reply(ErrorCode.REQUEST_TIMEOUT)
        except BodyTooLongError:
            return self.errors.reply(ErrorCode.BODY_TOO_LONG)
        except NoRoomError:
            return self.errors.reply(ErrorCode.OVERLOADED, (CLOSE,))
        except ClientGoneError:
            return None

    async def _through(self, scope: Scope, receive: Receive, send: Send, more: tuple[Header, ...]) -> None:
        def note(status: int) -> None:
            self.ledger.note(scope, status, scope.get(REPLY), scope[_BEGAN])

        sender = scope[_SENDER] = _Sender(send, more, note)
        await self._app(scope, receive, sender)

    async def _reply(
        self,
        reply: Reply,
        headers: MutableMapping[bytes, bytes],
        receive: Receive,
        send: Send,
        more: tuple[Header, ...],
    ) -> None:
        if b"expect" in headers and CLOSE not in more:  # its body may or may not come
            more = (*more, CLOSE)
        await send(reply.start(*more))
        if reply.code in _UNREAD and CLOSE in reply.headers:
            await send({"type": "http.response.body", "body": reply.body, "more_body": True})
            await linger(receive, self._read_timeout_s)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": reply.body})

    def _give_up_late(self) -> None:
        """Cancel what has been in work for too long: one timer for all, for they come in order."""
        loop = asyncio.get_running_loop()
        ended = loop.time() - self._timeout_s
        late = list(itertools.takewhile(lambda work: self._work[work] <= ended, self._work))
        for work in late:
            del self._work[work]
            self._late.add(work)
            work.cancel()
        first = next(iter(self._work.values()), None)
        self._timer = None if first is None else loop.call_at(first + self._timeout_s, self._give_up_late)


def has_body(headers: MutableMapping[bytes, bytes]) -> bool:
    """Tell whether a request has a body, or says so."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _length(headers: MutableMapping[bytes, bytes]) -> float:
    """Return the announced length of a body; 0 where none is announced."""
    given = headers.get(b"content-length", b"0")
    return float(given) if given.isdigit() else 0.0


def _begun(scope: Scope) -> bool:
    return _SENDER in scope and scope[_SENDER].started
