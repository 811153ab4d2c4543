"""What one client asks for must not cost the others their answers: bodies in memory, work of one call, turns."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from service.engine import Engine
from service.http import gate as gate_module
from service.http.batching import QueueFullError, recommend_all
from service.settings import Settings
from service.values import Request
from tests.service.asking import run
from tests.service.test_service_batching import Gate, ask, make
from tests.service.threaded import WAIT_S, Scripted, engines_of, read_reply, served

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(folder: Path) -> Scripted:
    return Scripted(Engine.load(folder).manifest)


def test_all_bodies_together_are_bounded(engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_MOST_HELD", 0)
    monkeypatch.setattr(gate_module, "_MOST_HELD_BODIES", 1.5)
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    body = b'{"user_id":"u"%b}' % (b" " * 1900)
    options = Settings(max_body_bytes=2000)
    with served(engines_of(m=engine), options) as server, httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
        with server.connect() as first, server.connect() as second:
            first.sendall(head % len(body) + body)
            while not engine.asked:  # read, and held until it is answered
                time.sleep(0.002)
            second.sendall(head % len(body) + body[:1500])
            status, headers, reply = read_reply(second)
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert b"overloaded" in reply
            second.sendall(body[1500:])
            assert second.recv(1) == b""  # and not a reset
            engine.open.set()
            assert read_reply(first)[0] == 200
        for _ in range(3):
            reply_to_all = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
            assert reply_to_all.status_code == 200


def test_who_comes_alone_does_not_wait_for_all_of_a_crowd() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate, max_batch=4, max_queue=100)
        tasks = await ask(batcher, "first")
        crowd = asyncio.create_task(recommend_all([(batcher, Request(f"c{number}", 1)) for number in range(8)]))
        await asyncio.sleep(0)
        tasks += await ask(batcher, "a", "b", "c")
        assert batcher.waiting == 11
        gate.open.set()
        await asyncio.gather(crowd, *tasks)
        assert [sorted(batch) for batch in gate.batches[1:3]] == [["a", "b", "c0", "c1"], ["c", "c2", "c3", "c4"]]
        assert sum(map(len, gate.batches)) == 12
        batcher.close()

    run(test())


@pytest.mark.parametrize(
    "heavy", [Request("h", 3000), Request("h", 1, exclude=("x",) * 3000), Request("h", 1, history=("x",) * 3000)]
)
def test_a_call_takes_no_more_work_than_others_can_wait_for(heavy: Request) -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        tasks = await ask(batcher, "first")
        crowd = asyncio.create_task(recommend_all([(batcher, heavy)] * 5))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(crowd, *tasks)
        assert gate.batches == [["first"], ["h"] * 2, ["h"] * 2, ["h"]]
        batcher.close()

    run(test())


def test_many_are_queued_all_or_none_and_leave_together() -> None:
    async def test() -> None:
        gates = Gate(), Gate()
        one, other = (make(gate, max_queue=3) for gate in gates)
        busy = [*await ask(one, "busy"), *await ask(other, "busy")]
        questions = [(one, Request("a", 1)), (other, Request("b", 1)), (one, Request("c", 1))]
        with pytest.raises(QueueFullError):
            await recommend_all([*questions, (one, Request("d", 1)), (one, Request("e", 1))])
        assert one.waiting == other.waiting == 0
        task = asyncio.create_task(recommend_all(questions))
        await asyncio.sleep(0)
        assert (one.waiting, other.waiting) == (2, 1)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert one.waiting == other.waiting == 0
        task = asyncio.create_task(recommend_all(questions))
        for gate in gates:
            gate.open.set()
        assert len(await task) == 3
        await asyncio.gather(*busy)
        assert [gate.batches for gate in gates] == [[["busy"], ["a", "c"]], [["busy"], ["b"]]]
        one.close()
        other.close()

    run(test())
