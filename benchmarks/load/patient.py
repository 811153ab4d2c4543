"""Connections that are opened again when the server closes them, as clients of a service that reloads have them."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from http import HTTPStatus

from benchmarks.http_client import ServerError
from benchmarks.load.client import Channel, Connections, Question, Reply, connect

LOST = 0
"""Status of a request that got no reply."""
_MOST_LOST = 1000
"""So many without one reply between them: there is no server any more."""


class _Noting(Channel):
    """Looks at what a reply says of coming again and of the connection."""

    advised = False

    def use(self, opened: socket.socket) -> None:
        super().use(opened)
        self.stays = True

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.advised = True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.stays = self._parser.should_keep_alive()


class PatientConnections(Connections):
    """Like ``Connections``, but a request that gets no reply is an outcome, a reply of status ``LOST``.

    A connection that the server closes, or says that it will close, is replaced at once. Nothing is sent twice.

    Args:
        address: Host and port.
        count: How many.

    Attributes:
        lost: Why requests got no reply → how many.
        unadvised: Replies of status 503 without ``Retry-After``.

    Raises:
        ServerError: The server cannot be reached.
    """

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._address = address
        self._failed: deque[tuple[Channel, Reply]] = deque()
        self._in_a_row = 0
        self.lost: Counter[str] = Counter()
        self.unadvised = 0
        super().__init__(address, count)

    def _channel(self, opened: socket.socket) -> Channel:
        return _Noting(opened)

    def _send(self, connection: Channel, question: Question, since: int) -> None:
        try:
            super()._send(connection, question, since)
        except ServerError as error:
            self._failed.append((connection, self._loss(connection, str(error))))

    def _read(self, connection: Channel) -> Reply | None:
        try:
            reply = connection.read()
        except ServerError as error:
            if connection.asked is None:
                self._renew(connection)
                return None
            return self._loss(connection, str(error))
        if reply is None or not isinstance(connection, _Noting):
            return reply
        self._in_a_row = 0
        self.unadvised += reply.status == HTTPStatus.SERVICE_UNAVAILABLE and not connection.advised
        connection.advised = False
        if not connection.stays:
            self._renew(connection)
        return reply

    def replies(self, until: int | None = None) -> Iterator[Reply]:
        """See ``Connections``; what could not be sent comes back here, too."""
        if not self._failed:
            yield from super().replies(until)
        while self._failed:
            connection, reply = self._failed.popleft()
            self._idle.append(connection)
            yield reply

    def ask_in_turn(self, questions: Sequence[Question]) -> None:
        """Ask once over each connection, one after the other, whatever the replies are."""
        for position in range(self.count):
            self.ask(questions[position % len(questions)])
            while self.busy:
                list(self.replies())
        self.lost.clear()
        self.unadvised = 0

    def _loss(self, connection: Channel, reason: str) -> Reply:
        self.lost[reason] += 1
        self._in_a_row += 1
        if self._in_a_row >= _MOST_LOST or connection.asked is None:
            raise ServerError(f"{self._in_a_row} requests in a row got no reply: {reason}")
        question, since = connection.asked
        self._renew(connection)
        return Reply(question, since, time.perf_counter_ns(), LOST, reason.encode())

    def _renew(self, connection: Channel) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        try:
            connection.use(connect(self._address))
        except OSError as error:
            raise ServerError(f"cannot connect again: {error.strerror or error}") from error
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
