from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.http_client import ServerError
from benchmarks.load.client import Connections, Question
from benchmarks.load.loops import closed_loop, open_loop
from benchmarks.load.patient import PatientConnections
from benchmarks.load.questions import Constant, Recommend
from tests.benchmarks.raw_server import reply, replying

ASKED = Constant.of(100)
RIGHT = reply(ASKED.body)
LAST = RIGHT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
ADVISED = REFUSED.replace(b"\r\n\r\n", b"\r\nretry-after: 1\r\n\r\n")


def endless(question: Question = ASKED) -> Iterator[Question]:
    return itertools.repeat(question)


def test_a_connection_that_the_server_ends_is_replaced() -> None:
    used: set[int] = set()

    def one_each(connection: socket.socket, _number: int) -> bool:
        used.add(connection.getpeername()[1])
        connection.sendall(LAST)
        return False

    with replying(one_each) as address, PatientConnections(address, 3) as connections:
        connections.ask_in_turn([ASKED])
        assert not connections.busy
        seen = open_loop(connections, endless(), np.linspace(0, 0.01, 20))
        closed = closed_loop(connections, endless(), 0.02)
    assert (len(seen.latencies), seen.errors, closed.errors, dict(connections.lost)) == (20, {}, {}, {})
    assert len(used) == 3 + 20 + closed.requests


def test_a_connection_that_is_closed_while_idle_is_no_failed_request() -> None:
    def leaving(connection: socket.socket, _number: int) -> bool:
        connection.sendall(RIGHT)
        return False

    with replying(leaving) as address, PatientConnections(address, 2) as connections:
        seen = open_loop(connections, endless(), np.linspace(0, 0.25, 6))
        assert (len(seen.latencies), seen.errors, dict(connections.lost)) == (6, {}, {})


def test_a_request_that_gets_no_reply_counts_and_is_not_sent_again() -> None:
    numbers: list[int] = []

    def losing(connection: socket.socket, number: int) -> bool:
        numbers.append(number)
        if number % 4 == 3:
            return False
        connection.sendall(RIGHT)
        return True

    with replying(losing) as address, PatientConnections(address, 2) as connections:
        seen = open_loop(connections, endless(), np.linspace(0, 0.05, 40))
        assert dict(connections.lost) == {"the server closed a connection": 10}
    assert (len(seen.latencies), seen.errors, len(numbers)) == (30, {"status 0": 10}, 40)
    assert len(seen.error_latencies["status 0"]) == 10


def test_losses_with_replies_between_them_end_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.patient._MOST_LOST", 2)

    def every_second(connection: socket.socket, number: int) -> bool:
        if number % 2:
            return False
        connection.sendall(RIGHT)
        return True

    with replying(every_second) as address, PatientConnections(address, 1) as connections:
        seen = open_loop(connections, endless(), np.zeros(10))
    assert (len(seen.latencies), seen.errors) == (5, {"status 0": 5})


def test_what_cannot_be_sent_is_lost_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with replying(lambda on, _: on.sendall(RIGHT)) as address, PatientConnections(address, 1) as connections:
        send, sent = Connections._send, 0

        def failing(self: Connections, *rest: object) -> None:
            nonlocal sent
            sent += 1
            if sent % 2:
                rest[0]._asked = rest[1:]  # type: ignore[attr-defined]
                raise ServerError("planted")
            send(self, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Connections, "_send", failing)
        seen = open_loop(connections, endless(), np.zeros(10))
        assert (len(seen.latencies), seen.errors, connections.lost["planted"]) == (5, {"status 0": 5}, 5)


def test_refusals_that_do_not_say_when_to_come_again_are_counted() -> None:
    def refusing(connection: socket.socket, number: int) -> None:
        connection.sendall((REFUSED, ADVISED, RIGHT)[number % 3])

    with replying(refusing) as address, PatientConnections(address, 2) as connections:
        seen = open_loop(connections, endless(), np.zeros(30))
        assert connections.unadvised == 10
    assert seen.errors == {"status 503": 20}
    assert len(seen.error_latencies["status 503"]) == 20


def test_a_server_that_is_gone_ends_the_run() -> None:
    with (
        replying(lambda *_: False) as address,
        PatientConnections(address, 2) as connections,
        pytest.raises(ServerError, match="1000 requests in a row got no reply"),
    ):
        closed_loop(connections, endless(), 60.0)
    with replying(lambda on, _: on.sendall(RIGHT)) as address:
        opened = PatientConnections(address, 1)
        opened.ask_in_turn([ASKED])
        idle = opened._all[0].socket.getsockname()
        assert idle[0] == "127.0.0.1"
        opened._all[0].socket.shutdown(socket.SHUT_WR)
    with opened, pytest.raises(ServerError, match="cannot connect again"):
        closed_loop(opened, endless(), 60.0)


class Pondered(Constant):
    """Its client takes long over every reply."""

    def fault(self, status: int, body: bytes) -> str:
        time.sleep(0.03)
        return super().fault(status, body)


def test_a_client_that_is_late_itself_does_not_say_that_it_was_held() -> None:
    asked = endless(Pondered(ASKED.request, ASKED.body))
    with replying(lambda on, _: on.sendall(RIGHT)) as address, Connections(address, 32) as connections:
        seen = open_loop(connections, asked, np.concatenate([np.zeros(5), np.linspace(0.01, 0.1, 10)]))
    assert seen.late.max() > 0.05
    assert seen.held.max() == 0


def test_a_question_may_leave_the_version_open() -> None:
    body = b'{"user_id":"u","model":"m","version":"0123456789ab","source":"model","items":[{"item_id":"i","score":1}]}'
    for version, right in (("0123456789ab", True), ("", True), ("1123456789ab", False)):
        question = Recommend.of("u", "m", version, 1)
        assert (question.fault(200, body) == "") is right
        assert (question.fault_in_full(body) == "") is right
    assert Recommend.of("u", "n", "", 1).fault(200, body)


def test_waiting_for_a_connection_is_told_from_being_late_ourselves() -> None:
    def standing_still(connection: socket.socket, number: int) -> None:
        if number == 5:
            time.sleep(0.3)
        connection.sendall(RIGHT)

    with replying(standing_still) as address, Connections(address, 1) as connections:
        seen = open_loop(connections, endless(), np.linspace(0, 0.195, 40))
    assert seen.late.max() > 0.25
    assert seen.held.max() > 0.25
    assert bool((seen.held <= seen.late).all())
    # The one that stood still went out in time; it is those behind it that were held.
    assert np.count_nonzero(seen.held) >= 30
    assert seen.held[5] < 0.1
    assert float(np.median(seen.late - seen.held)) < 0.1
    assert len(seen.begun) == 40
    assert seen.started > 0
    assert np.sort(seen.begun) == pytest.approx(np.arange(40) * 0.005, abs=0.05)
