"""Somebody who means no good, in a process of his own: he reads jobs from stdin, attacks, and says what came of it."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.production.hostile import PATIENCE_S, PROBE, PROBED, SMUGGLED, Attack, all_attacks

READY = "ready"
WAIT_S = 30
_PAUSE_S = 0.2
_THREADS = 32
_READ = 2**16


class CutOffError(Exception):
    """A reply ends before it is complete."""


class Reply(NamedTuple):
    """A reply: its status, its request's id and its body."""

    status: int
    request_id: str
    body: bytes

    @property
    def code(self) -> str:
        """The error's code, where it is one."""
        return str(json.loads(self.body)["error"]["code"]) if self.status >= 400 and self.body else ""


class Connection:
    """A connection to a server on this machine, from which replies are read one by one.

    Args:
        port: Of the server.

    Raises:
        OSError: It cannot be reached.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def __enter__(self) -> Self:
        """Use the connection in a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send as much as the server takes."""
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, or less where something comes."""
        self._socket.settimeout(seconds)
        with suppress(TimeoutError, ConnectionError):
            self._data += self._socket.recv(_READ)
        self._socket.settimeout(WAIT_S)

    def reply(self) -> Reply | None:
        """Read a reply; None where the connection ends instead.

        Raises:
            CutOffError: The connection ends within a reply.
            TimeoutError: Nothing comes.
        """
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                return None
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(self._data) < length:
            if not self._more():
                raise CutOffError
        body, self._data = self._data[:length], self._data[length:]
        return Reply(int(first.split()[1]), headers["x-request-id"], body)

    def _more(self) -> bool:
        try:
            part = self._socket.recv(_READ)
        except ConnectionError:
            return False
        self._data += part
        return bool(part)


def right_reply(port: int) -> bytes:
    """Return the body that a reply to `hostile.PROBE` must have."""
    with Connection(port) as connection:
        connection.send(PROBE)
        reply = connection.reply()
        return reply.body if reply else b""


def wrong_with(attack: Attack, port: int, right: bytes) -> str:
    """Attack, and return what is wrong with what comes of it; empty where nothing is.

    The only reply is the attack's own: what is asked over its connection afterwards gets the next one, or none.

    Args:
        attack: What is sent.
        port: Of the server.
        right: The body of every reply 200, see `right_reply`.
    """
    try:
        found = _wrong_with(attack, port, right)
    except (OSError, CutOffError) as error:
        found = type(error).__name__
    return f"{attack.name}: {found}" if found else ""


def _wrong_with(attack: Attack, port: int, right: bytes) -> str:
    with Connection(port) as connection:
        for number, part in enumerate(attack.parts):
            if number:
                connection.pause(_PAUSE_S)
            connection.send(part)
        reply = connection.reply()
        if reply is None:
            return "" if attack.may_be_lost else "no reply"
        if reply.status not in {attack.status, attack.or_status} or attack.code not in {"", reply.code}:
            return f"{reply.status} {reply.body[:200]!r}"
        if reply.request_id in {SMUGGLED, PROBED}:
            return "took a request's body or trailer for its headers"
        if reply.status == 200 and reply.body != right and b'"alive"' not in reply.body:
            return f"answered wrongly, {reply.body[:200]!r}"
        connection.send(PROBE)
        after = connection.reply()
        if after is not None and (after.request_id, after.body) != (PROBED, right) and not attack.may_be_lost:
            return f"the next request got {after}"
        return "smuggled" if after is not None and after.request_id == SMUGGLED else ""


class Job(NamedTuple):
    """A stretch of attacks.

    Attributes:
        seconds: How long attacks begin.
        rate: How many begin per second, evenly.
        idle: Connections that say nothing, as many as this at any time once `PATIENCE_S` have passed.
        seed: Draws the order.
    """

    seconds: float
    rate: float
    idle: int
    seed: int


class _Silent:
    """Connections that say nothing: whenever the service closes one there is another, evenly over time."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most = port, most
        self._opened = 0
        self._held: deque[Connection] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._held:
            connection.close()

    def renew(self, seconds: float) -> None:
        """Open those that are due so many seconds after the beginning, as far as the service accepts them."""
        due = int(self._most * seconds / PATIENCE_S)
        with suppress(OSError):
            while self._opened < due:
                self._opened += 1
                self._held.append(Connection(self._port))
                if len(self._held) > self._most:
                    self._held.popleft().close()


def perform(port: int, attacks: list[Attack], right: bytes, job: Job, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Attack for a while; each kind comes as often as any other.

    Returns:
        Number of attacks, what was wrong with how many, and CPU seconds, as JSON values.
    """
    began, used = time.monotonic(), time.process_time()
    order = _in_turn(attacks, np.random.default_rng(job.seed))
    pending: list[Future[str]] = []
    with _Silent(port, job.idle) as silent:
        for number in count():
            after = number / job.rate
            if after >= job.seconds:
                break
            time.sleep(max(0.0, began + after - time.monotonic()))
            silent.renew(after)
            pending.append(pool.submit(wrong_with, next(order), port, right))
        wrong = Counter(found for one in pending if (found := one.result()))
    return {"attacks": len(pending), "wrong": dict(wrong), "cpu_seconds": time.process_time() - used}


def _in_turn(attacks: list[Attack], generator: np.random.Generator) -> Iterator[Attack]:
    while True:
        for position in generator.permutation(len(attacks)).tolist():
            yield attacks[position]


def main() -> None:
    """Take the port from the command line and a job from each line of stdin; answer each in a line of JSON."""
    port = int(sys.argv[1])
    attacks, right = all_attacks(), right_reply(port)
    _say(json.dumps({READY: len(attacks)}))
    with ThreadPoolExecutor(_THREADS) as pool:
        for line in sys.stdin:
            _say(json.dumps(perform(port, attacks, right, Job(**json.loads(line)), pool)))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
