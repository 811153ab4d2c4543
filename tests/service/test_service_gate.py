"""The outermost layer, over real connections: bounds, key, request ids, what takes too long, the end."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from service.engine import Engine
from service.http.app import create_app
from service.http.gate import GONE, Gate
from service.settings import Settings
from tests.service.in_process import in_process
from tests.service.threaded import KEY, WAIT_S, Scripted, Threaded, engines_of, is_closed, read_reply, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ASK = b"POST /recommend?user_id=u HTTP/1.1\r\nHost: x\r\n\r\n"
PATHS = (
    "/recommend?user_id=u",
    "/recommend",
    "/recommend/batch",
    "/items/1/similar",
    "/nowhere",
    "/models",
    "/openapi.json",
)


@pytest.fixture
def engine(folder: Path) -> Scripted:
    return Scripted(Engine.load(folder).manifest)


@contextmanager
def serving(engine: Scripted, **options: Any) -> Iterator[tuple[Threaded, httpx.Client]]:
    with (
        served(engines_of(m=engine), Settings(**options)) as server,
        httpx.Client(base_url=server.url, timeout=WAIT_S) as client,
    ):
        try:
            yield server, client
        finally:
            engine.open.set()


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_reply_has_a_request_id(engine: Scripted) -> None:
    engine.open.set()
    with serving(engine) as (_, client):
        fresh: list[str] = []
        for path in PATHS:
            for method in ("GET", "POST"):
                given = client.request(method, path, headers={"X-Request-ID": "my.own_ID-1"})
                assert given.headers["x-request-id"] == "my.own_ID-1"
                fresh.append(client.request(method, path).headers["x-request-id"])
        for unfit in ("", "a b", "a\tb", "é", "x" * 65, "<script>"):
            found = client.post(PATHS[0], headers=[(b"X-Request-ID", unfit.encode())]).headers["x-request-id"]
            assert found != unfit
            fresh.append(found)
        assert client.post(PATHS[0], headers={"X-Request-ID": "x" * 64}).headers["x-request-id"] == "x" * 64
        assert len(set(fresh)) == len(fresh)
        assert all(re.fullmatch("[A-Za-z0-9._-]{1,64}", one) for one in fresh)


def test_more_than_may_be_in_work_is_refused_at_once(engine: Scripted) -> None:
    with serving(engine, max_in_flight=3) as (server, client), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(httpx.post, f"{server.url}/recommend?user_id=u{n}", timeout=WAIT_S) for n in range(3)]
        until(lambda: server.gate.in_flight == 3)
        for path in ("/recommend?user_id=v", "/models", "/nowhere"):
            reply = client.post(path)
            assert code(reply) == (503, "overloaded")
            assert reply.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        engine.open.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        until(lambda: server.gate.in_flight == 0)
        assert client.post("/recommend?user_id=v").status_code == 200


def test_a_full_queue_is_refused(engine: Scripted) -> None:
    with serving(engine, max_queue=1) as (server, client), ThreadPoolExecutor(2) as pool:
        first = pool.submit(httpx.post, f"{server.url}/recommend?user_id=u", timeout=WAIT_S)
        until(lambda: len(engine.asked) == 1)
        second = pool.submit(httpx.post, f"{server.url}/recommend?user_id=u", timeout=WAIT_S)
        until(lambda: server.gate.in_flight == 2)
        reply = client.post("/recommend?user_id=u")
        assert code(reply) == (503, "overloaded")
        assert reply.headers["retry-after"] == "1"
        engine.open.set()
        assert first.result().status_code == second.result().status_code == 200


@pytest.mark.parametrize(
    ("headers", "right"),
    [
        ({"Authorization": f"Bearer {KEY}"}, True),
        ({"authorization": f"bearer  {KEY}"}, True),
        ({"X-API-Key": KEY}, True),
        ({}, False),
        ({"Authorization": KEY}, False),
        ({"Authorization": f"Basic {KEY}"}, False),
        ({"Authorization": f"Bearer {KEY}x"}, False),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, False),
        ({"Authorization": "Bearer "}, False),
        ({"X-API-Key": ""}, False),
        ({"X-API-Key": KEY.upper()}, False),
    ],
)
def test_the_key(engine: Scripted, headers: dict[str, str], right: bool) -> None:
    engine.open.set()
    options = Settings(api_key=SecretStr(KEY))
    app = create_app(engines_of(m=engine), options)

    async def test(client: httpx.AsyncClient) -> None:
        for path in PATHS:
            reply = await client.post(path, headers=headers)
            if right:
                assert reply.status_code != 401, path
            else:
                assert code(reply) == (401, "unauthorized"), path
                assert reply.headers["www-authenticate"] == "Bearer"
                assert KEY not in reply.text
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path, headers=headers)).status_code == 200

    in_process(app, test, started=True, gate=Gate(app, options))
    assert bool(engine.asked) == right


def test_what_takes_too_long_is_given_up(engine: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """All ways to the engine; and who is given up is not answered later by anybody's work."""
    with serving(engine, request_timeout_s=0.4) as (server, client), ThreadPoolExecutor(8) as pool:
        began = time.monotonic()
        batch = {"requests": [{"user_id": f"b{number}"} for number in range(3)]}
        calls: list[tuple[str, str, Any]] = [
            ("POST", "/recommend?user_id=second", None),
            ("POST", "/recommend", {"user_id": "third"}),
            ("POST", "/recommend/batch", batch),
            ("GET", "/items/1/similar", None),
            ("GET", "/users/1/history", None),
            ("GET", "/users/2/history", None),
        ]

        def ask(call: tuple[str, str, Any]) -> httpx.Response:
            return httpx.request(call[0], server.url + call[1], json=call[2], timeout=WAIT_S)

        first = pool.submit(ask, ("POST", "/recommend?user_id=first", None))
        until(lambda: len(engine.asked) == 1)
        replies = [*pool.map(ask, calls), first.result()]
        assert [code(reply) for reply in replies] == [(504, "timed_out")] * (len(calls) + 1)
        assert time.monotonic() - began < WAIT_S / 2
        assert server.gate.in_flight == 0
        assert client.get("/models").status_code == 200
        engine.open.set()
        assert client.post("/recommend?user_id=later").status_code == 200
        # The first was in the engine's hands already; those who waited behind it are not answered to nobody.
        assert [[request.user_id for request in requests] for requests in engine.asked] == [["first"], ["later"]]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_is_gone_leaves_the_queue(engine: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    with serving(engine) as (server, client), ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{server.url}/recommend?user_id=first", timeout=WAIT_S)
        until(lambda: len(engine.asked) == 1)
        for number in range(5):
            with server.connect() as connection:
                connection.sendall(ASK.replace(b"=u", b"=gone%d" % number))
                until(lambda: server.gate.in_flight == 2)
            until(lambda: server.gate.in_flight == 1)
        engine.open.set()
        assert first.result().status_code == 200
        assert client.post("/recommend?user_id=last").status_code == 200
        assert [[request.user_id for request in requests] for requests in engine.asked] == [["first"], ["last"]]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_draining_closes_connections_one_reply_later(engine: Scripted) -> None:
    engine.open.set()
    with serving(engine) as (server, _):
        with server.connect() as straight, server.connect() as framework, server.connect() as ready:
            for connection, path in (
                (straight, b"POST /recommend?user_id=u"),
                (framework, b"GET /models"),
                (ready, b"GET /readyz"),
            ):
                connection.sendall(path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                status, headers, _body = read_reply(connection)
                assert (status, headers.get("connection")) == (200, None)
            server.gate.draining = True
            for connection, path in (
                (straight, b"POST /recommend?user_id=u"),
                (framework, b"GET /models"),
                (ready, b"GET /readyz"),
            ):
                connection.sendall(path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                status, headers, body = read_reply(connection)
                assert status == (503 if connection is ready else 200)
                assert headers["connection"] == "close"
                assert b"not_ready" in body or connection is not ready
                assert is_closed(connection)
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_body_that_is_announced_too_long_is_not_awaited(engine: Scripted) -> None:
    """Neither its first byte nor, after the reply, all of it."""
    with serving(engine, max_body_bytes=2000, read_timeout_s=0.3) as (server, _), server.connect() as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        began = time.monotonic()
        status, headers, body = read_reply(connection)
        assert (status, headers["connection"]) == (413, "close")
        assert b"body_too_long" in body
        assert is_closed(connection)
        assert time.monotonic() - began < WAIT_S / 2
        assert server.gate.in_flight == 0


def test_the_rest_of_a_refused_body_is_taken_in(engine: Scripted) -> None:
    """Closed at once, the connection would be reset under the sender's hands, and the reply might be lost."""
    with serving(engine, max_body_bytes=2000) as (server, _), server.connect() as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
        assert read_reply(connection)[0] == 413
        for _ in range(20):
            connection.sendall(b"x" * 10_000)
            time.sleep(0.005)
        assert connection.recv(1) == b""  # and not a reset


def test_expected_bodies(engine: Scripted) -> None:
    """A client that waits for leave to send its body gets it, or a reply after which the connection ends."""
    engine.open.set()
    with serving(engine, max_body_bytes=2000) as (server, _):
        head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        with server.connect() as connection:
            connection.sendall(head + b"Content-Length: 15\r\n\r\n")
            assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b'{"user_id":"u"}')
            assert read_reply(connection)[0] == 200
        with server.connect() as connection:
            connection.sendall(head + b"Content-Length: 3000\r\n\r\n")
            assert read_reply(connection)[0] == 413
    with serving(engine, api_key=SecretStr(KEY)) as (server, _), server.connect() as connection:
        connection.sendall(head + b"Content-Length: 15\r\n\r\n")
        status, headers, _body = read_reply(connection)
        assert (status, headers["connection"]) == (401, "close")
        assert is_closed(connection)


class Failing:
    """An application that fails before its reply, in its midst or after it."""

    class State:
        desk = None

    def __init__(self, sends: int) -> None:
        self.state, self.routes = self.State(), ()
        self._sends = sends

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        messages = [
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"x", "more_body": True},
            {"type": "http.response.body", "body": b"y"},
        ]
        for message in messages[: self._sends]:
            await send(message)
        raise RuntimeError("planted")


@pytest.mark.parametrize("sends", [0, 1, 2, 3])
def test_an_error_is_logged_once_and_replied_once(sends: int, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(Failing(sends), Settings())  # type: ignore[arg-type]
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": []}
        await gate(scope, receive, send)

    if sends in {1, 2}:  # cut off: the server has to close the connection
        with pytest.raises(RuntimeError, match="planted"):
            asyncio.run(run())
    else:
        asyncio.run(run())
    assert sum(message["type"] == "http.response.start" for message in sent) == 1
    assert sent[0]["status"] == (200 if sends else 500)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]
    assert gate.in_flight == 0


def test_who_goes_in_the_midst_of_a_reply_is_no_error() -> None:
    class Slow(Failing):
        async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            scope[GONE] = True
            await asyncio.sleep(WAIT_S)

    async def nothing(_message: Any = None) -> Any:
        return None

    async def run() -> None:
        gate = Gate(Slow(0), Settings())  # type: ignore[arg-type]
        scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": []}
        task = asyncio.create_task(gate(scope, nothing, nothing))
        while GONE not in scope:
            await asyncio.sleep(0)
        task.cancel()
        await task
        assert gate.in_flight == 0

    asyncio.run(run())


def test_nobody_replies_to_who_is_gone(engine: Scripted) -> None:
    options = Settings()
    app = create_app(engines_of(m=engine), options)
    gate, sent = Gate(app, options), list[Any]()

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/recommend", "query_string": b"user_id=u", "headers": []}
        async with app.router.lifespan_context(app):
            for key in (GONE, "other"):
                task = asyncio.create_task(gate(scope | {key: True}, receive, send))
                for _ in range(20):  # until the engine is asked
                    await asyncio.sleep(0)
                task.cancel()
                done = await asyncio.gather(task, return_exceptions=True)
                # Whoever cancels a request for another reason is told that it was.
                assert [type(one) for one in done] == [type(None) if key == GONE else asyncio.CancelledError]
            engine.open.set()

    asyncio.run(run())
    assert sent == []
    assert gate.in_flight == 0


def test_what_is_no_request_passes_through(engine: Scripted) -> None:
    app = create_app(engines_of(m=engine), Settings())
    seen: list[str] = []

    async def run() -> None:
        incoming = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Any:
            return {"type": next(incoming)}

        async def send(message: Any) -> None:
            seen.append(message["type"])

        await Gate(app, Settings())({"type": "lifespan", "state": {}}, receive, send)

    asyncio.run(run())
    assert seen == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
