"""A light HTTP client for load: one thread, keep-alive connections, every reply checked, times to the microsecond.

It waits in ``select`` because the timers of asyncio and of uvloop count whole milliseconds, and requests that must go
out at given times would all be late by as much as a request takes.
"""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, Self

import httptools

from benchmarks.http_client import REPLY_S, ServerError

_SPIN_NS = 60_000
"""Of a wait for a given time, the end that is not slept: a sleeping process is woken up about so much late."""
_READ = 1 << 16
UNTIMED = 0
"""Instead of a time: this request's latency does not count."""


class Question(Protocol):
    """A request, ready to be sent as often as one likes, and what its reply must be."""

    @property
    def request(self) -> bytes:
        """The whole request."""

    def fault(self, status: int, body: bytes) -> str:
        """Say in a few words what is wrong with a reply; nothing if it is right. Runs for every reply: cheap."""

    def fault_in_full(self, body: bytes) -> str:
        """Say what is wrong with the body of a reply, by looking at all of it."""


class Reply(NamedTuple):
    """A reply.

    Attributes:
        question: What it answers.
        since: Nanoseconds from when its latency counts.
        at: Nanoseconds when it was complete.
        status: Of HTTP.
        body: Its content.
    """

    question: Question
    since: int
    at: int
    status: int
    body: bytes


class Channel:
    """One connection with at most one request under way; the callbacks are those of the parser.

    Args:
        opened: The connection.
    """

    def __init__(self, opened: socket.socket) -> None:
        self.use(opened)

    def use(self, opened: socket.socket) -> None:
        """Begin anew with another connection."""
        self.socket = opened
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._begun = self._complete = 0
        self._asked: tuple[Question, int] | None = None

    @property
    def asked(self) -> tuple[Question, int] | None:
        """What is under way, and since when."""
        return self._asked

    def on_message_begin(self) -> None:
        """A reply begins."""
        self._begun += 1

    def on_body(self, part: bytes) -> None:
        """A part of its body."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """A reply is complete."""
        self._complete += 1

    def ask(self, question: Question, since: int) -> None:
        """Send a request whose latency counts from some time."""
        self._asked = question, since
        self.socket.sendall(question.request)

    def read(self) -> Reply | None:
        """Take what has arrived; return the reply if that completes one."""
        try:
            data = self.socket.recv(_READ)
            self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            raise ServerError(f"no reply that can be read: {error or type(error).__name__}") from error
        if not data:
            raise ServerError("the server closed a connection")
        if self._begun > (self._asked is not None):
            raise ServerError("the server sent a reply that nobody asked for")
        if not self._complete or self._asked is None:
            return None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        reply = Reply(*self._asked, time.perf_counter_ns(), self._parser.get_status_code(), body)
        self._parts.clear()
        self._begun = self._complete = 0
        self._asked = None
        return reply


def connect(address: tuple[str, int]) -> socket.socket:
    """Return a new connection that sends at once what it is given.

    Raises:
        OSError: The server cannot be reached.
    """
    opened = socket.create_connection(address, timeout=REPLY_S)
    opened.settimeout(None)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


class Connections:
    """Keep-alive connections to one server, used in turn: one that is idle for long would be closed by the server.

    Args:
        address: Host and port.
        count: How many.

    Raises:
        ServerError: The server cannot be reached.
    """

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._idle: deque[Channel] = deque()
        self._all: list[Channel] = []
        try:
            for _ in range(count):
                connection = self._channel(connect(address))
                self._all.append(connection)
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        except OSError as error:
            self.close()
            raise ServerError(f"cannot connect to {address[0]}:{address[1]}: {error.strerror or error}") from error
        self._idle += self._all

    def _channel(self, opened: socket.socket) -> Channel:
        return Channel(opened)

    def __enter__(self) -> Self:
        """Use the connections in a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.socket.close()
        self._selector.close()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._all)

    @property
    def free(self) -> bool:
        """Whether a connection has no request under way."""
        return bool(self._idle)

    @property
    def busy(self) -> bool:
        """Whether a reply is awaited."""
        return len(self._idle) < len(self._all)

    def ask(self, question: Question, since: int | None = None) -> None:
        """Send a request over a free connection; its latency counts from now, or from ``since``.

        Raises:
            ServerError: The server has closed the connection.
        """
        self._send(self._idle.popleft(), question, time.perf_counter_ns() if since is None else since)

    def _send(self, connection: Channel, question: Question, since: int) -> None:
        try:
            connection.ask(question, since)
        except OSError as error:
            raise ServerError(f"the server closed a connection: {error.strerror or error}") from error

    def replies(self, until: int | None = None) -> Iterator[Reply]:
        """Wait until something arrives and yield the replies that it completes, each as soon as it has been read.

        Args:
            until: Nanoseconds; wait no longer, and come back with nothing.

        Raises:
            ServerError: Nothing arrived for ``REPLY_S`` seconds, or no proper reply.
        """
        if until is None:
            ready = self._selector.select(REPLY_S)
            if not ready:
                raise ServerError(f"no reply within {REPLY_S:.0f} s")
        else:
            patience = until - _SPIN_NS - time.perf_counter_ns()
            if patience > 0:
                # Asked itself, the selector would round the time up to a millisecond.
                select.select([self._selector], [], [], patience * 1e-9)
            ready = self._selector.select(0)
        for key, _ in ready:
            connection: Channel = key.data
            reply = self._read(connection)
            if reply is not None:
                self._idle.append(connection)
                yield reply

    def _read(self, connection: Channel) -> Reply | None:
        return connection.read()

    def ask_each(self, questions: Sequence[Question]) -> None:
        """Ask once over each connection and check the replies in full: from here on the server knows the connections.

        Raises:
            ServerError: A reply is wrong.
        """
        for position in range(self.count):
            self.ask(questions[position % len(questions)])
        while self.busy:
            for reply in self.replies():
                self.check(reply, in_full=True)

    @staticmethod
    def check(reply: Reply, *, in_full: bool = False) -> None:
        """Refuse a wrong reply.

        Raises:
            ServerError: Says what was asked and what is wrong.
        """
        question = reply.question
        fault = question.fault(reply.status, reply.body) or (question.fault_in_full(reply.body) if in_full else "")
        if fault:
            asked = question.request.split(b" HTTP/", 1)[0].decode(errors="replace")
            raise ServerError(f"{asked}: {fault}")
