"""Connections on which somebody dawdles, sends without end, or sends what is no HTTP."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest

from service.engine import Engine
from service.settings import Settings
from tests.service.threaded import WAIT_S, Scripted, engines_of, is_closed, read_reply, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.http.protocol import Protocol
    from tests.service.threaded import Threaded

PATIENCE_S = 0.25
ASK = b"POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Scripted:
    return Scripted(Engine.load(folder).manifest)


@pytest.fixture(scope="module")
def server(engine: Scripted) -> Iterator[Threaded]:
    engine.open.set()
    with served(engines_of(m=engine), Settings(read_timeout_s=PATIENCE_S)) as server:
        yield server


@pytest.fixture
def connection(server: Threaded) -> Iterator[socket.socket]:
    with server.connect() as connection:
        yield connection


def error_of(connection: socket.socket) -> tuple[int, str]:
    status, headers, body = read_reply(connection)
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert is_closed(connection)
    return status, json.loads(body)["error"]["code"]


def dribble(connection: socket.socket, data: bytes) -> None:
    """Send something every now and then; the server must lose its patience long before this one does."""
    with suppress(OSError):
        for _ in range(80):
            connection.sendall(data)
            time.sleep(PATIENCE_S / 10)
        raise AssertionError("the server waits for ever")


@pytest.mark.parametrize("sent", [b"P", b"POST /recommend?user_id=u", ASK[:-2]])
def test_slow_headers(connection: socket.socket, sent: bytes) -> None:
    began = time.monotonic()
    connection.sendall(sent)
    assert error_of(connection) == (408, "request_timeout")
    assert PATIENCE_S * 0.8 < time.monotonic() - began < WAIT_S / 2


def test_slow_headers_that_never_stop(connection: socket.socket) -> None:
    connection.sendall(ASK[:-2])
    dribble(connection, b"a: b\r\n")
    assert is_closed(connection) or error_of(connection) == (408, "request_timeout")


def test_slow_headers_of_a_later_request(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(ASK)
        assert read_reply(connection)[0] == 200
    connection.sendall(ASK[:20])
    assert error_of(connection) == (408, "request_timeout")


def test_a_request_in_pieces_is_answered_when_it_comes_in_time(connection: socket.socket) -> None:
    for _ in range(3):  # together longer than one may take
        for start in range(0, len(ASK), 8):
            connection.sendall(ASK[start : start + 8])
            time.sleep(PATIENCE_S / 16)
        assert read_reply(connection)[0] == 200


@pytest.mark.parametrize("filler", [b"", b"\r\n"])
def test_a_connection_without_a_request_is_closed(connection: socket.socket, filler: bytes) -> None:
    began = time.monotonic()
    if filler:
        dribble(connection, filler)
    assert is_closed(connection)
    assert time.monotonic() - began < WAIT_S / 2


@pytest.mark.parametrize("sent", [b"", b'{"user'])
def test_a_slow_body(connection: socket.socket, server: Threaded, sent: bytes) -> None:
    connection.sendall(POST + sent)
    assert error_of(connection) == (408, "request_timeout")
    assert server.gate.in_flight == 0


def test_a_slow_body_that_never_stops(connection: socket.socket) -> None:
    connection.sendall(POST.replace(b"15", b"1000"))
    dribble(connection, b" ")
    assert is_closed(connection) or error_of(connection) == (408, "request_timeout")


def test_a_body_that_nobody_reads_ends_some_time(connection: socket.socket) -> None:
    """The reply comes at once; what follows it must not hold the connection for ever."""
    connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    dribble(connection, b"1\r\nx\r\n")
    assert is_closed(connection) or read_reply(connection)[0] in {405, 408}


@pytest.mark.parametrize(
    ("start", "filler", "wanted"),
    [
        (b"POST /recommend?user_id=", b"x" * 10_000, (414, "uri_too_long")),
        (b"POST /recommend HTTP/1.1\r\n", b"a: " + b"x" * 10_000 + b"\r\n", (431, "headers_too_long")),
        (b"POST /recommend HTTP/1.1\r\na: ", b"x" * 10_000, (431, "headers_too_long")),
    ],
)
def test_heads_without_end(connection: socket.socket, start: bytes, filler: bytes, wanted: tuple[int, str]) -> None:
    connection.sendall(start + filler * 7)  # no more than the server reads before it refuses
    assert error_of(connection) == wanted


@pytest.mark.parametrize("pieces", [1, 3])
def test_very_many_headers(connection: socket.socket, pieces: int) -> None:
    lines = b"".join(b"%d:\r\n" % number for number in range(1010))
    step = -(-len(lines) // pieces)
    connection.sendall(b"POST /recommend HTTP/1.1\r\n")
    for start in range(0, len(lines), step):
        connection.sendall(lines[start : start + step])
        time.sleep(PATIENCE_S / 16)
    assert error_of(connection) == (431, "headers_too_long")


def test_many_headers_are_none_too_many(connection: socket.socket) -> None:
    lines = b"".join(b"a%d: b\r\n" % number for number in range(900))
    connection.sendall(ASK[:-2] + lines + b"\r\n")
    assert read_reply(connection)[0] == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\na\0b: c\r\n\r\n",
    ],
)
def test_what_is_no_http(connection: socket.socket, garbage: bytes) -> None:
    connection.sendall(garbage)
    status, headers, body = read_reply(connection)
    assert status in {400, 404}
    assert headers["x-request-id"]
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]["code"] in {"invalid_request", "not_found"}


def test_a_client_that_takes_nothing_in_is_cut_off(server: Threaded, engine: Scripted) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_S)
        connection.connect(("127.0.0.1", server.port))
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < WAIT_S:
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
                time.sleep(0.01)
        assert time.monotonic() - began < WAIT_S / 2
    deadline = time.monotonic() + WAIT_S
    while server.gate.in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_others_are_answered_meanwhile(server: Threaded) -> None:
    slow = [server.connect() for _ in range(50)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall((ASK[:-2], POST, b"P")[number % 3])
        with server.connect() as connection:
            for _ in range(20):
                connection.sendall(ASK)
                assert read_reply(connection)[0] == 200
        assert {read_reply(connection)[0] for connection in slow} == {408}
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("more", [b"", b"X-Padding: %b\r\n" % (b"x" * 20_000)])
def test_who_is_refused_again_and_again_keeps_the_connection(connection: socket.socket, more: bytes) -> None:
    """Refused within the call that takes the request in: neither time nor bytes add up from one to the next."""
    refused = b"POST /recommend?k=0&user_id=u HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n"
    ends = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < ends:
        connection.sendall(refused)
        assert read_reply(connection)[0] == 422
        time.sleep(PATIENCE_S / 20)
    time.sleep(2 * PATIENCE_S)
    connection.sendall(refused + ASK[:10])
    assert read_reply(connection)[0] == 422
    assert error_of(connection) == (408, "request_timeout")


def test_requests_sent_at_once_are_answered_in_order(connection: socket.socket) -> None:
    connection.sendall(ASK.replace(b"=u", b"=first") + ASK.replace(b"=u", b"=second") + ASK[:10])
    data = b""
    while data.count(b"HTTP/1.1 200") < 2 or not data.endswith(b"}"):
        data += connection.recv(65536)
    assert data.index(b"for first") < data.index(b"for second")
    time.sleep(PATIENCE_S / 4)
    connection.sendall(ASK[10:])
    assert read_reply(connection)[0] == 200


@pytest.mark.parametrize("by_framework", [False, True])
def test_a_connection_is_kept_as_long_as_it_is_used_and_a_little_longer(
    server: Threaded, connection: socket.socket, by_framework: bool
) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" if by_framework else ASK
    while not (protocols := cast("set[Protocol]", server.server.server_state.connections)):
        time.sleep(0.001)
    for protocol in protocols:
        protocol.timeout_keep_alive = 0.4  # type: ignore[assignment]
    for _ in range(12):
        connection.sendall(ask)
        assert read_reply(connection)[0] == 200
        last = time.monotonic()
        time.sleep(0.1)
    assert is_closed(connection)
    assert 0.3 < time.monotonic() - last < 0.4 + WAIT_S / 2
