from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from service.http import batching
from service.http.batching import Batcher, EngineFailedError, QueueFullError
from service.values import Recommendation, Request, ScoredItems
from tests.service.asking import TIMEOUT_S, recommend, run

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture(autouse=True)
def no_call_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_SHORT_S", 0.0)


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
        return [Recommendation(source="popular", items=ScoredItems.of()) for _ in requests]


def make(gate: Gate, *, max_batch: int = 8, max_queue: int = 16) -> Batcher:
    return Batcher(gate, name="test", max_batch=max_batch, max_queue=max_queue)


async def ask(batcher: Batcher, *users: str) -> list[asyncio.Task[Recommendation]]:
    tasks = [asyncio.create_task(recommend(batcher, Request(user, 1))) for user in users]
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
        assert [type(result) for result in results[1:]] == [EngineFailedError] * 3
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
            await recommend(batcher, Request("3", 1))
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


def test_whoever_asks_a_closed_batcher_is_refused() -> None:
    async def test() -> None:
        batcher = make(Gate())
        scheduled = asyncio.create_task(recommend(batcher, Request("a", 1)))
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await scheduled
        with pytest.raises(QueueFullError):
            await recommend(batcher, Request("b", 1))

    run(test())


class Faulty:
    """An engine that fails as it is told, and answers nothing else than it is told."""

    def __init__(self, outcome: BaseException | list[Recommendation]) -> None:
        self.outcome = outcome

    def recommend_many(self, _requests: Sequence[Request]) -> list[Recommendation]:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize("name", ["in the thread", "short"])
@pytest.mark.parametrize(
    "outcome",
    [ValueError("x"), MemoryError(), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration(), [],
     asyncio.CancelledError(), [Recommendation("model", ScoredItems.of())] * 3],
)  # fmt: skip
def test_whatever_an_engine_does_nobody_waits_for_ever(
    name: str, outcome: BaseException | list[Recommendation], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        right = [Recommendation("model", ScoredItems.of())]
        engine = Faulty(right)
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        await recommend(batcher, Request("a", 1))
        engine.outcome = outcome
        found = await asyncio.gather(*[recommend(batcher, Request("b", 1)) for _ in range(2)], return_exceptions=True)
        assert [type(one) for one in found] == [EngineFailedError] * 2
        engine.outcome = right
        assert (await recommend(batcher, Request("a", 1))).source == "model"
        batcher.close()

    run(test())
    assert len([record for record in caplog.records if record.exc_info]) == 1  # once for both


def test_who_is_cancelled_makes_room_at_once() -> None:
    async def test() -> None:
        gate = Gate()
        batcher = make(gate, max_queue=3)
        first = await ask(batcher, "in flight")
        waiting = await ask(batcher, "1", "2", "3")
        with pytest.raises(QueueFullError):
            await recommend(batcher, Request("4", 1))
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (batcher.waiting, batcher.room) == (1, 2)
        waiting += await ask(batcher, "5", "6")
        gate.open.set()
        await asyncio.gather(*first, *waiting[2:])
        assert gate.batches == [["in flight"], ["3", "5", "6"]]
        batcher.close()

    run(test())
