from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from service.batching import Batcher, QueueFullError
from service.engine import Recommendation, Request

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

TIMEOUT_S = 10


class Gate:
    """An engine that answers when it is let, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.open = threading.Event()

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        self.batches.append([request.user_id for request in requests])
        self.threads.add(threading.get_ident())
        assert self.open.wait(TIMEOUT_S)
        if any(request.user_id == "boom" for request in requests):
            raise ValueError("planted")
        return [Recommendation(source="popular", items=[]) for _ in requests]


def run(test: Coroutine[object, object, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test, TIMEOUT_S)

    asyncio.run(limited())


def make(gate: Gate, *, max_batch: int = 8, max_queue: int = 16) -> Batcher:
    return Batcher(gate, name="test", max_batch=max_batch, max_queue=max_queue)


async def ask(batcher: Batcher, *users: str) -> list[asyncio.Task[Recommendation]]:
    tasks = [asyncio.create_task(batcher.recommend(user, 1)) for user in users]
    for _ in range(5):  # every task queues its request, and an idle batcher starts
        await asyncio.sleep(0)
    return tasks


def test_what_arrives_during_a_call_is_answered_by_the_next() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        tasks = await ask(batcher, "a")
        tasks += await ask(batcher, *"bcdefghijkl")
        gate.open.set()
        await asyncio.gather(*tasks)
        assert gate.batches == [["a"], list("bcdefghi"), list("jkl")]  # alone at once, then at most 8
        assert len(gate.threads) == 1
        assert threading.get_ident() not in gate.threads
        await asyncio.gather(*await ask(batcher, "later"))
        assert gate.batches[-1] == ["later"]
        batcher.close()

    run(test())


def test_what_is_there_already_is_answered_by_one_call() -> None:
    async def test() -> None:
        gate = Gate()
        gate.open.set()
        batcher = make(gate)
        await asyncio.gather(*await ask(batcher, *"abc"))
        assert gate.batches == [["a", "b", "c"]]
        batcher.close()

    run(test())


def test_the_event_loop_turns_during_a_call() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        (task,) = await ask(batcher, "a")
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.open.set()
        await task
        batcher.close()

    run(test())


def test_a_cancelled_caller_disturbs_nobody() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        tasks = await ask(batcher, "in flight")
        tasks += await ask(batcher, "waiting", "stays")
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert (await tasks[2]).source == "popular"
        assert gate.batches == [["in flight"], ["stays"]]
        assert tasks[0].cancelled()
        assert tasks[1].cancelled()
        batcher.close()

    run(test())


def test_all_waiting_callers_cancelled_leaves_the_batcher_idle() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        (first,) = await ask(batcher, "a")
        (second,) = await ask(batcher, "b")
        second.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        await first
        await asyncio.gather(*await ask(batcher, "c"))
        assert gate.batches == [["a"], ["c"]]
        batcher.close()

    run(test())


def test_an_error_reaches_every_waiter_of_its_batch_and_only_them() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        tasks = await ask(batcher, "fine")
        tasks += await ask(batcher, "x", "boom", "y")
        gate.open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], Recommendation)
        assert [type(result) for result in results[1:]] == [ValueError] * 3
        (after,) = await asyncio.gather(*await ask(batcher, "after"))
        assert after.source == "popular"
        batcher.close()

    run(test())


def test_a_full_queue_refuses() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate, max_queue=2)
        tasks = await ask(batcher, "in flight")
        tasks += await ask(batcher, "1", "2")
        with pytest.raises(QueueFullError):
            await batcher.recommend("3", 1)
        gate.open.set()
        await asyncio.gather(*tasks)
        batcher.close()

    run(test())


def test_closing_cancels_those_who_wait_and_ends_the_thread() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate)
        (first,) = await ask(batcher, "a")
        (second,) = await ask(batcher, "b")
        gate.open.set()
        batcher.close()
        assert (await first).source == "popular"
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-test")]

    run(test())
