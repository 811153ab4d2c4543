from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.http_client import ServerError
from benchmarks.load.client import Connections, Question
from benchmarks.load.loops import closed_block, closed_loop, open_loop
from benchmarks.load.questions import Constant, Recommend
from tests.benchmarks.raw_server import Answer, reply, replying

ASKED = Constant.of(700)
RIGHT = reply(ASKED.body)


def endless(question: Question = ASKED) -> Iterator[Question]:
    return itertools.repeat(question)


def whole(connection: socket.socket, _number: int) -> None:
    connection.sendall(RIGHT)


def byte_by_byte(connection: socket.socket, _number: int) -> None:
    for position in range(len(RIGHT)):
        connection.sendall(RIGHT[position : position + 1])


def in_three(connection: socket.socket, _number: int) -> None:
    head = RIGHT.index(b"\r\n\r\n") + 4
    for part in (RIGHT[: head - 2], RIGHT[head - 2 : head + 300], RIGHT[head + 300 :]):
        connection.sendall(part)
        time.sleep(0.002)


def chunked(connection: socket.socket, _number: int) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (ASKED.body[:1], ASKED.body[1:]))
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")


@pytest.mark.parametrize("answer", [whole, byte_by_byte, in_three, chunked])
def test_a_reply_may_come_in_any_pieces(answer: Answer) -> None:
    with replying(answer) as address, Connections(address, 2) as connections:
        connections.ask_each([ASKED])
        assert len(closed_block(connections, [ASKED] * 5, lead=2)) == 5
        seen = open_loop(connections, endless(), np.linspace(0, 0.005, 6))
        assert (len(seen.latencies), seen.errors) == (6, {})


def twice(connection: socket.socket, _number: int) -> None:
    connection.sendall(RIGHT + RIGHT)


def one_and_a_half(connection: socket.socket, _number: int) -> None:
    connection.sendall(RIGHT + RIGHT[:50])


def nonsense(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def closing(_connection: socket.socket, number: int) -> bool:
    return number < 0


def closing_halfway(connection: socket.socket, number: int) -> bool:
    connection.sendall(RIGHT[:-1])
    return number < 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (twice, "nobody asked for"),
        (one_and_a_half, "nobody asked for"),
        (nonsense, "no reply that can be read"),
        (closing, "closed a connection"),
        (closing_halfway, "closed a connection"),
    ],
)
def test_what_is_no_reply_ends_the_run(answer: Answer, said: str) -> None:
    for loop in (
        lambda connections: closed_loop(connections, endless(), 0.1),
        lambda connections: open_loop(connections, endless(), np.zeros(4)),
        lambda connections: closed_block(connections, [ASKED] * 4, lead=1),
    ):
        with (
            replying(answer) as address,
            Connections(address, 2) as connections,
            pytest.raises(ServerError, match=said),
        ):
            loop(connections)


def test_a_server_that_is_not_there() -> None:
    with replying(whole) as address:
        pass
    with pytest.raises(ServerError, match="cannot connect to 127"):
        Connections(address, 2)


def failing_sometimes(connection: socket.socket, number: int) -> None:
    connection.sendall(reply(b"", "500 Internal Server Error") if number % 4 == 3 else RIGHT)


def test_wrong_replies_are_counted_and_their_times_are_not() -> None:
    with replying(failing_sometimes) as address, Connections(address, 1) as connections:
        seen = open_loop(connections, endless(), np.linspace(0, 0.004, 40))
        assert (len(seen.latencies), seen.errors, seen.requests) == (30, {"status 500": 10}, 40)
        closed = closed_loop(connections, endless(), 0.02)
        assert abs(3 * closed.errors["status 500"] - len(closed.latencies)) <= 3
        with pytest.raises(ServerError, match=r"POST /constant: status 500"):
            closed_block(connections, [ASKED] * 8, lead=1)
        with replying(lambda on, _: on.sendall(reply(b"y" * 700))) as other, Connections(other, 1) as wrong:
            assert list(open_loop(wrong, endless(), np.zeros(3)).errors.values()) == [3]
            with pytest.raises(ServerError, match="700 other bytes"):
                wrong.ask_each([ASKED])


STALL_S = 0.4


def stalling(at: int) -> Answer:
    def answer(connection: socket.socket, number: int) -> None:
        if number == at:
            time.sleep(STALL_S)
        connection.sendall(RIGHT)

    return answer


@pytest.mark.parametrize("connections", [1, 16])
def test_an_open_loop_charges_a_standstill_to_everybody_who_would_have_asked(connections: int) -> None:
    """A closed loop waits with the server and counts one slow reply: that is coordinated omission."""
    due = np.linspace(0, 0.995, 200)
    with replying(stalling(at=20)) as address, Connections(address, connections) as opened:
        seen = open_loop(opened, endless(), due)
    # Whoever was due in the first half of the standstill waited for the other half at least.
    charged = np.count_nonzero((due >= due[20]) & (due < due[20] + STALL_S / 2))
    assert charged >= 40
    assert np.count_nonzero(seen.latencies >= STALL_S / 2) >= charged
    assert seen.latencies.max() >= STALL_S
    assert len(seen.latencies) == len(seen.late) == len(due)
    with replying(stalling(at=20)) as address, Connections(address, 1) as opened:
        closed = closed_loop(opened, endless(), 2 * STALL_S)
    assert len(closed.latencies) > 40
    assert np.count_nonzero(closed.latencies >= STALL_S / 2) < charged / 2


def test_an_open_loop_keeps_its_times_and_says_how_late_it_was() -> None:
    due = np.cumsum(np.random.default_rng(0).exponential(0.003, 60))
    arrived: list[float] = []

    def note(connection: socket.socket, _number: int) -> None:
        arrived.append(time.perf_counter())
        connection.sendall(RIGHT)

    with replying(note) as address, Connections(address, 8) as connections:
        before = time.perf_counter()
        seen = open_loop(connections, endless(), due)
    assert bool((np.array(arrived) - before >= due).all())  # nothing went out early
    assert bool((seen.late >= 0).all())
    assert seen.elapsed >= due[-1]


def test_connections_take_turns_so_that_none_is_idle_for_long() -> None:
    used: list[int] = []

    def note(connection: socket.socket, _number: int) -> None:
        used.append(connection.getpeername()[1])
        connection.sendall(RIGHT)

    with replying(note) as address, Connections(address, 4) as connections:
        for _ in range(8):
            connections.ask(ASKED)
            while connections.busy:
                assert len(list(connections.replies())) <= 1
    assert len(set(used)) == 4
    assert used[:4] == used[4:]


def test_requests_at_either_end_of_a_block_do_not_count() -> None:
    numbers: list[int] = []

    def slow_at_first(connection: socket.socket, number: int) -> None:
        numbers.append(number)
        if number < 3:
            time.sleep(0.3)
        connection.sendall(RIGHT)

    with replying(slow_at_first) as address, Connections(address, 3) as connections:
        # The first three keep the next three waiting, which do not count either.
        latencies = closed_block(connections, [ASKED] * 10, lead=6)
        assert len(latencies) == 10
        assert max(latencies) < 0.3
        # While the last that counts was under way, both other connections were busy.
        assert len(numbers) >= 6 + 10 + 2
        assert not connections.busy


def test_a_block_asks_every_question_once_under_the_clock() -> None:
    """Questions are told apart by what their replies must be."""
    lengths = [100, 200, 300, 400, 500]
    timed: list[int] = []

    class Noting(Connections):
        def ask(self, question: Question, since: int | None = None) -> None:
            if since is None:
                timed.append(int(question.request.split(b"=")[1].split()[0]))
            super().ask(question, since)

    class Numbered(Constant):
        pass

    asked = [Numbered(b"POST /constant?n=%d HTTP/1.1\r\n\r\n" % length, ASKED.body) for length in lengths]
    with replying(whole) as address, Noting(address, 3) as connections:
        assert len(closed_block(connections, asked, lead=4)) == 5
    assert timed == lengths


def recommended(**changes: Any) -> bytes:
    items = [{"item_id": f"i{rank}", "title": 'a "item_id": b', "score": 3.0 - rank} for rank in range(3)]
    document = {"user_id": 'Zoë "7"', "model": "m", "version": "0123456789ab", "source": "model", "items": items}
    return json.dumps(document | changes, ensure_ascii=False, separators=(",", ":")).encode()


def with_items(change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    items = json.loads(recommended())["items"]
    change(items)
    return recommended(items=items)


def test_every_part_of_a_recommendation_is_checked() -> None:
    question = Recommend.of('Zoë "7"', "m", "0123456789ab", 3)
    assert question.request.startswith(b"POST /recommend?user_id=Zo%C3%AB+%227%22&k=3&model=m HTTP/1.1\r\n")
    assert question.fault(200, recommended()) == question.fault_in_full(recommended()) == ""
    assert question.fault(503, recommended()) == "status 503"
    for key, value in (("user_id", "Zoë 7"), ("model", "n"), ("version", "1123456789ab"), ("source", "popular")):
        assert f'"{key}"' in question.fault(200, recommended(**{key: value}))
        assert question.fault_in_full(recommended(**{key: value}))
    assert question.fault(200, with_items(lambda items: items.pop())) == "2 items, wanted 3"
    assert question.fault_in_full(with_items(lambda items: items.pop()))
    for wrong in (
        with_items(lambda items: items.reverse()),
        with_items(lambda items: items[0].update(item_id="i1")),
        with_items(lambda items: items[0].update(score=None)),
        b"[]",
        b"{",
    ):
        assert question.fault_in_full(wrong)
