"""The straight way: a request for recommendations that is all in its head is answered past framework and ASGI.

For a task, an event and two messages per request, and a server that checks them all, take longer than finding the
answer. Who may ask, what may be asked and what is replied is the same either way: gate, desk and ledger see to that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from service.http.reply import CLOSE, Reply
from service.http.schemas import ErrorCode
from service.http.timing import ASKED_FOR, server_timing
from service.observe.logs import request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.http.batching import EngineFailedError
    from service.http.desk import Desk, Ticket
    from service.http.gate import Gate
    from service.http.reply import Header
    from service.values import Recommendation

R = TypeVar("R")
Ts = TypeVarTuple("Ts")
_LOG = logging.getLogger(__name__)
PATH = b"/recommend"
_METHOD, _PATH = "POST", PATH.decode()


class Straight:
    """One request and its reply, in the place where uvicorn's protocol keeps one of its own.

    It takes its answer itself, and the reply is on its way before the next request of its batch has its own.

    Args:
        gate: Lets it in.
        desk: Answers it.
        send: Sends a reply with more headers; one of these may say that the connection closes.
        keep_alive: Whether the connection stays open.

    Attributes:
        keep_alive: For uvicorn, which sets it to false when the server ends.
        response_started: For uvicorn.
        response_complete: For uvicorn: what comes on the same connection before the reply waits for it.
        disconnected: For uvicorn.
        more_body: For uvicorn: there is none.
        message_event: For uvicorn: nobody waits for it.
    """

    more_body = False
    message_event = asyncio.Event()

    def __init__(
        self, gate: Gate, desk: Desk, send: Callable[[Reply, tuple[Header, ...]], None], *, keep_alive: bool
    ) -> None:
        self._gate = gate
        self._desk = desk
        self._send = send
        self._ticket: Ticket | None = None
        self._over = False
        self.keep_alive = keep_alive
        self.response_started = self.response_complete = self.disconnected = False

    def begin(self, scope: dict[str, Any], headers: dict[bytes, bytes], query: bytes) -> None:
        """Ask, or reply at once where nothing is to be asked.

        Args:
            scope: ASGI's, which lacks what stands in a request's first line.
            headers: Of the request.
            query: Its query string.
        """
        self._began = time.perf_counter()
        scope["method"], scope["path"], scope["query_string"] = _METHOD, _PATH, query
        self._scope = scope
        self._more = self._gate.more(headers)
        self._timed = ASKED_FOR in headers
        request_id.set(self._more[0][1])
        refused = self._gate.refuse(_PATH, query, headers)
        asked = self._tried(self._desk.ask_plainly, query, self) if refused is None else refused
        if isinstance(asked, Reply):
            self._reply(asked)
        else:
            self._ticket = asked
            self._gate.enter(self)

    def done(self) -> bool:
        """Tell whether no answer is waited for any more."""
        return self._over

    def set_result(self, answer: Recommendation) -> None:
        """Reply with the answer."""
        self._end(self._desk.reply, answer)

    def set_exception(self, _error: EngineFailedError) -> None:
        """Reply that there is none."""
        self._end(self._desk.failed)

    def cancel(self) -> None:
        """Reply that it takes too long, or else, that the queue has closed."""
        reply = self._gate.errors.reply(ErrorCode.TIMED_OUT if self._gate.is_late(self) else ErrorCode.NOT_READY)
        self._end(lambda _: reply)
        self._leave_queue()

    def abandon(self) -> None:
        """Reply nothing: nobody waits for it."""
        self._over = True
        self._gate.leave(self)
        self._leave_queue()

    def _end(self, answer: Callable[[Ticket, *Ts], Reply], *what: *Ts) -> None:
        """Reply, with what is logged in the name of this request: the answer comes in the midst of others' work."""
        ticket = self._ticket
        if self._over or ticket is None:
            return
        self._over = True
        named = request_id.set(self._more[0][1])
        try:
            self._gate.leave(self)
            self._reply(self._tried(answer, ticket, *what))
        finally:
            request_id.reset(named)

    def _leave_queue(self) -> None:
        if self._ticket is not None:
            self._ticket.batcher.sweep_soon()

    def _tried(self, ask: Callable[[*Ts], R], *what: *Ts) -> R | Reply:
        try:
            return ask(*what)
        except Exception:  # noqa: BLE001 (the log says which)
            _LOG.exception("a request failed")
            return self._gate.errors.reply(ErrorCode.INTERNAL)

    def _reply(self, reply: Reply) -> None:
        self._gate.ledger.note(self._scope, reply.status, reply, self._began)
        more = self._more
        if self._timed:
            more = (*more, server_timing(self._began))
        if not self.keep_alive and CLOSE not in more:
            more = (*more, CLOSE)
        self.response_started = self.response_complete = True
        self._send(reply, more)
