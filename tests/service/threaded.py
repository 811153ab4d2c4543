"""A real server in a thread of the test's own process: gate, protocol and all, over engines of the test's choice."""

from __future__ import annotations

import copy
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from service.http.app import create_app
from service.http.gate import Gate
from service.http.protocol import Protocol
from service.values import DescribedItem, Recommendation, Request, ScoredItem, ScoredItems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from export.manifest import Manifest
    from service.engine import Engine
    from service.settings import Settings
    from service.values import KnownItem

WAIT_S = 10
KEY = "0123456789abcdef"


@dataclass
class Scripted:
    """Stands for an engine: answers when it is let, and notes what it was asked.

    Attributes:
        manifest: Of some bundle.
        open: Whether it answers; it waits until then.
        boom: What it raises.
    """

    manifest: Manifest
    open: threading.Event = field(default_factory=threading.Event)
    boom: BaseException | None = None
    asked: list[list[Request]] = field(default_factory=list)
    categories: tuple[str, ...] = ("rare",)
    providers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    certificate: bytes = b'{"proof":true}'

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        self.asked.append(list(requests))
        self._wait()
        return [
            Recommendation("model", ScoredItems.of([ScoredItem(0, f"for {request.user_id}", None, 1.0)][: request.k]))
            for request in requests
        ]

    def similar(self, item_id: str, k: int) -> ScoredItems | None:
        self._wait()
        return ScoredItems.of([ScoredItem(0, f"like {item_id}", None, 1.0)][:k])

    def items(self, item_ids: Sequence[str]) -> list[DescribedItem]:
        self._wait()
        return [DescribedItem(row, item_id, None, []) for row, item_id in enumerate(item_ids)]

    def some_users(self, count: int) -> list[str]:
        return [f"u{number}" for number in range(count)]

    def history(self, _user_id: str) -> list[KnownItem] | None:
        self._wait()
        return None

    def _wait(self) -> None:
        assert self.open.wait(WAIT_S)
        if self.boom is not None:
            raise self.boom


@dataclass(frozen=True)
class Threaded:
    """A server that listens."""

    url: str
    port: int
    gate: Gate
    server: uvicorn.Server

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def engines_of(**engines: Any) -> Mapping[str, Engine]:
    return cast("Mapping[str, Engine]", engines)


@contextmanager
def served(engines: Mapping[str, Engine], settings: Settings) -> Iterator[Threaded]:
    """Serve on a free port until the block ends."""
    gate = Gate(create_app(engines, settings), settings)
    logging = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logging["loggers"]["uvicorn.error"]["level"] = "WARNING"
    config = uvicorn.Config(
        gate,
        loop="uvloop",
        http=Protocol.to(gate, settings),
        ws="none",
        lifespan="on",
        log_config=logging,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + WAIT_S
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield Threaded(f"http://127.0.0.1:{port}", port, gate, server)
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
            assert not thread.is_alive()


def read_reply(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one reply from a socket: status, headers in lower case, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, f"closed after {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


def is_closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
