"""Requests for recommendations past framework and ASGI, compared with the same ones by way of them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from service.engine import Engine
from service.http.app import create_app
from service.http.desk import Desk
from service.http.gate import Gate
from service.http.straight import Straight
from service.observe.logs import request_id
from service.settings import Settings
from tests.service.threaded import WAIT_S, Scripted, engines_of, is_closed, read_reply, served

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from service.http.desk import Ticket
    from service.values import Recommendation
    from tests.service.threaded import Threaded

KEY = "a-key-of-enough-length-0123456789"
BEARER = f"Authorization: Bearer {KEY}\r\n"
ITS_OWN = {"x-request-id", "date"}
TIMED = {"server-timing"}


@pytest.fixture
def by_framework(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the requests that go by way of ASGI."""
    paths: list[str] = []
    through = Gate.__call__

    async def noted(gate: Gate, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await through(gate, scope, receive, send)

    monkeypatch.setattr(Gate, "__call__", noted)
    return paths


@pytest.fixture
def server(folder: Path, by_framework: list[str]) -> Iterator[Threaded]:
    with served({"m": Engine.load(folder)}, Settings(api_key=SecretStr(KEY))) as server:
        yield server


@pytest.fixture(name="scripted")
def scripted_engine(folder: Path) -> Iterator[Scripted]:
    engine = Scripted(Engine.load(folder).manifest)
    yield engine
    engine.open.set()


def ask(server: Threaded, head: str, rest: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Ask over a connection of its own; it must be closed where the reply says so, and usable where not."""
    with server.connect() as connection:
        connection.sendall(head.encode() + rest)
        status, headers, body = read_reply(connection)
        if headers.get("connection") == "close":
            assert is_closed(connection)
        else:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_reply(connection)[0] == 200
        return status, headers, body


@pytest.mark.parametrize(
    ("target", "more", "status"),
    [
        ("/recommend?user_id=u-1&k=3", BEARER, 200),
        ("/recommend?user_id=u-1&k=3#part", BEARER, 200),
        ("/recommend?k=2&user_id=u%2D1&history=7&exclude=1", BEARER, 200),
        ("/recommend?user_id=nobody", BEARER + "Content-Length: 0\r\n", 200),
        ("/recommend?user_id=u-1", BEARER + "Connection: close\r\n", 200),
        ("/recommend?user_id=u-1", BEARER + "X-Server-Timing: 1\r\n", 200),
        ("/recommend", BEARER, 422),
        ("/recommend?user_id=u-1&k=0", BEARER, 422),
        ("/recommend?user_id=%ff", BEARER, 422),
        ("/recommend?user_id=u-1&model=other", BEARER, 404),
        ("/recommend?user_id=u-1", "", 401),
        ("/recommend?user_id=u-1", "X-API-Key: wrong\r\n", 401),
        ("/recommend?user_id=" + "u" * 40_000, BEARER, 414),
    ],
)
def test_both_ways_say_the_same(server: Threaded, by_framework: list[str], target: str, more: str, status: int) -> None:
    line = f"POST {target} HTTP/1.1\r\nHost: x\r\n"
    straight = ask(server, f"{line}{more}\r\n")
    assert "/recommend" not in by_framework
    chunked = more.replace("Content-Length: 0\r\n", "") + "Transfer-Encoding: chunked\r\n"
    framework = ask(server, f"{line}{chunked}\r\n", b"0\r\n\r\n")
    assert "/recommend" in by_framework
    assert straight[0] == framework[0] == status
    assert straight[2] == framework[2]
    assert straight[1].keys() == framework[1].keys() >= ITS_OWN
    assert {name: value for name, value in straight[1].items() if name not in ITS_OWN | TIMED} == {
        name: value for name, value in framework[1].items() if name not in ITS_OWN | TIMED
    }


def test_an_old_client_gets_a_reply_and_its_connection_closed(server: Threaded, by_framework: list[str]) -> None:
    head = "POST /recommend?user_id=u-1 HTTP/1.0\r\nConnection: keep-alive\r\n" + BEARER + "\r\n"
    status, headers, _ = ask(server, head)
    assert (status, headers["connection"], by_framework) == (200, "close", [])


@pytest.mark.parametrize(
    "line",
    [
        "GET /recommend?user_id=u-1",
        "POST /recommends?user_id=u-1",
        "POST /recommend/batch?user_id=u-1",
        "POST /%72ecommend?user_id=u-1",
        "POST http://x/recommend?user_id=u-1",
    ],
)
def test_what_is_anything_else_goes_by_the_framework(server: Threaded, by_framework: list[str], line: str) -> None:
    ask(server, f"{line} HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n")
    assert by_framework[0] != "/healthz"


def test_a_reply_comes_in_one_piece(server: Threaded) -> None:
    with server.connect() as connection:
        for _ in range(20):
            connection.sendall(f"POST /recommend?user_id=u-1 HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n".encode())
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head


def test_the_request_id_is_the_clients_or_a_new_one(server: Threaded) -> None:
    head = f"POST /recommend?user_id=u-1 HTTP/1.1\r\nHost: x\r\n{BEARER}"
    assert ask(server, f"{head}X-Request-Id: mine\r\n\r\n")[1]["x-request-id"] == "mine"
    made = [
        ask(server, f"{head}X-Request-Id: {given}\r\n\r\n")[1]["x-request-id"] for given in ("not so", "", "a" * 65)
    ]
    assert len(set(made)) == 3
    assert all(re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", one) for one in made)


def test_requests_of_both_ways_on_one_connection_are_answered_in_order(
    scripted: Scripted, by_framework: list[str]
) -> None:
    def post(user: str, more: str = "", rest: str = "") -> str:
        return f"POST /recommend?user_id={user} HTTP/1.1\r\nHost: x\r\n{more}\r\n{rest}"

    with served(engines_of(m=scripted), Settings()) as server, server.connect() as connection:
        get = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        chunked = post("b", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n")
        connection.sendall((post("a") + get + chunked + post("c") + get + post("d")).encode())
        scripted.open.set()
        data = b""
        while data.count(b"HTTP/1.1 200") < 6 or not data.endswith(b"}"):
            data += connection.recv(65536)
        found = re.findall(rb"for [a-d]|HTTP/1.1 200", data)
        assert b" ".join(found) == b"HTTP/1.1 200 ".join([b"", b"for a ", b"", b"for b ", b"for c ", b"", b"for d"])
        assert by_framework.count("/healthz") == 2
        connection.sendall(post("e").encode())
        assert b"for e" in read_reply(connection)[2]
        assert server.gate.in_flight == 0


@pytest.mark.parametrize("fault", ["ask_plainly", "reply"])
def test_an_unexpected_error_is_replied_without_detail_and_logged_with_the_id(
    scripted: Scripted, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("planted")

    def note(_record: logging.LogRecord) -> bool:
        logged.append(request_id.get())
        return True

    logged: list[bytes] = []
    logger = logging.getLogger("service.http.straight")
    monkeypatch.setattr(Desk, fault, fail)
    monkeypatch.setattr(logger, "filters", [note])
    scripted.open.set()
    with served(engines_of(m=scripted), Settings()) as server:
        head = "POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\nX-Request-Id: known\r\n\r\n"
        status, _, body = ask(server, head)
        assert (status, json.loads(body)["error"]["code"]) == (500, "internal")
        assert b"planted" not in body
        assert server.gate.in_flight == 0
    assert logged == [b"known"]
    assert "planted" in caplog.text


def test_no_more_than_may_be_in_work(scripted: Scripted) -> None:
    line = b"POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        served(engines_of(m=scripted), Settings(max_in_flight=1)) as server,
        server.connect() as first,
        server.connect() as second,
        ThreadPoolExecutor(1) as pool,
    ):
        first.sendall(line)
        waiting = pool.submit(read_reply, first)
        while not scripted.asked:
            assert not waiting.done()
            time.sleep(0.001)
        for _ in range(3):
            second.sendall(line)
            status, headers, _ = read_reply(second)
            assert (status, headers["retry-after"]) == (503, "1")
        scripted.open.set()
        assert waiting.result(WAIT_S)[0] == 200
        second.sendall(line)
        assert read_reply(second)[0] == 200


def test_a_queue_that_closes_is_not_ready(scripted: Scripted) -> None:
    app = create_app(engines_of(m=scripted), Settings())
    gate, sent = Gate(app, Settings()), list[int]()
    scripted.open.set()

    async def run() -> None:
        async with app.router.lifespan_context(app):
            assert gate.desk is not None
            straight = Straight(gate, gate.desk, lambda reply, _: sent.append(reply.status), keep_alive=True)
            straight.begin({}, {}, b"user_id=u")
            assert (gate.in_flight, straight.response_complete) == (1, False)
        await asyncio.sleep(0)
        assert (gate.in_flight, straight.response_complete) == (0, True)

    asyncio.run(run())
    assert sent == [503]


def test_a_reply_is_sent_before_the_next_of_its_batch_is_made(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = list[str](), {user: threading.Event() for user in "ab"}
    reply = Desk.reply

    def wait_for_the_other(desk: Desk, ticket: Ticket, answer: Recommendation) -> Any:
        if ticket.user_id in read:
            for other in made:
                assert read[other].wait(WAIT_S)
            made.append(ticket.user_id)
        return reply(desk, ticket, answer)

    monkeypatch.setattr(Desk, "reply", wait_for_the_other)
    with (
        served(engines_of(m=scripted), Settings()) as server,
        ThreadPoolExecutor(3) as pool,
        server.connect() as first,
        server.connect() as a,
        server.connect() as b,
    ):

        def ask_for(connection: socket.socket, user: str) -> int:
            connection.sendall(f"POST /recommend?user_id={user} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status = read_reply(connection)[0]
            if user in read:
                read[user].set()
            return status

        replies = [pool.submit(ask_for, first, "first")]
        while not scripted.asked:
            time.sleep(0.001)
        replies += [pool.submit(ask_for, a, "a"), pool.submit(ask_for, b, "b")]
        while server.gate.in_flight < 3:
            time.sleep(0.001)
        scripted.open.set()
        assert [one.result(2 * WAIT_S) for one in replies] == [200] * 3
        assert len(scripted.asked[1]) == 2
    assert sorted(made) == ["a", "b"]


def test_who_is_given_up_makes_room_for_others(scripted: Scripted) -> None:
    line = b"POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\n\r\n"
    settings = Settings(max_queue=1, request_timeout_s=0.3)
    with served(engines_of(m=scripted), settings) as server, ExitStack() as stack:
        first, *others = [stack.enter_context(server.connect()) for _ in range(3)]
        first.sendall(line)
        while not scripted.asked:
            time.sleep(0.001)
        for other in others:  # the one after the other waits in the one place that there is
            other.sendall(line)
            assert read_reply(other)[0] == 504
        scripted.open.set()


def test_an_engines_log_names_none_of_the_requests_before(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def note(_record: logging.LogRecord) -> bool:
        logged.append(request_id.get())
        return True

    logged: list[bytes] = []
    monkeypatch.setattr(logging.getLogger("service.http.batching"), "filters", [note])
    scripted.open.set()
    with served(engines_of(m=scripted), Settings()) as server, server.connect() as connection:
        for boom in (None, None, ValueError("planted")):
            scripted.boom = boom
            connection.sendall(b"POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\nX-Request-Id: known\r\n\r\n")
            assert read_reply(connection)[0] == (500 if boom else 200)
    assert logged == [b""]
    assert "planted" in caplog.text
