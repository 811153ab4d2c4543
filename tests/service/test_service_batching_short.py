"""Calls that are expected to be short stay in the event loop, others go to the worker thread."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from service.http import batching
from service.http.batching import Batcher, EngineFailedError
from service.values import Recommendation, Request, ScoredItems
from tests.service.asking import recommend, run

if TYPE_CHECKING:
    from collections.abc import Sequence


class Worker:
    """An engine that computes for as long as it is told, and notes in which threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.threads: list[int] = []

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        self.threads.append(threading.get_ident())
        end = time.thread_time() + self.seconds * len(requests)
        while time.thread_time() < end:
            pass
        if any(request.user_id == "boom" for request in requests):
            raise ValueError("planted")
        return [Recommendation(source="popular", items=ScoredItems.of()) for _ in requests]


def test_short_calls_stay_in_the_event_loop_and_others_do_not() -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        for _ in range(3):
            await recommend(batcher, Request("a", 1))
        assert engine.threads[0] != here  # nobody knows yet how long it takes
        assert engine.threads[1:] == [here, here]
        engine.seconds = 0.02
        await recommend(batcher, Request("a", 1))
        await recommend(batcher, Request("a", 1))
        assert engine.threads[3:] == [here, engine.threads[0]]  # one was unexpected
        engine.seconds = 0.0
        for _ in range(40):
            await recommend(batcher, Request("a", 1))
        assert engine.threads[-1] == here
        batcher.close()

    run(test())


def test_who_has_an_answer_does_not_wait_for_a_short_call_after_it() -> None:
    async def test() -> None:
        engine, seen = Worker(), list[int]()
        batcher = Batcher(engine, name="test", max_batch=1, max_queue=16)
        await recommend(batcher, Request("a", 1))
        before = len(engine.threads)
        answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for answer in answers:
            batcher.take(Request("a", 1), answer)
            answer.add_done_callback(lambda _: seen.append(len(engine.threads) - before))
        await asyncio.gather(*answers)
        assert seen == [1, 2, 3]
        batcher.close()

    run(test())


def test_short_answers_to_many_requests_are_a_long_call() -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Worker()
        engine.seconds = 0.3 * batching._SHORT_S
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        await recommend(batcher, Request("a", 1))
        await asyncio.gather(*[recommend(batcher, Request("a", 1)) for _ in range(8)])
        await recommend(batcher, Request("a", 1))
        assert [thread == here for thread in engine.threads] == [False, False, True]
        batcher.close()

    run(test())


class Timed:
    """An engine whose calls take what a clock of the test's own says, and which notes how many requests they have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each_s: float) -> None:
        self.each_s = each_s
        self.now = 0.0
        self.calls: list[tuple[int, int]] = []
        monkeypatch.setattr(time, "thread_time", lambda: self.now)

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        self.calls.append((threading.get_ident(), len(requests)))
        self.now += self.each_s * len(requests)
        return [Recommendation(source="popular", items=ScoredItems.of()) for _ in requests]


@pytest.mark.parametrize(("fit", "calls"), [(20, [20, 20, 10]), (7, [50])])
def test_more_than_are_short_wait_for_the_next_call_where_enough_are(
    fit: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Timed(monkeypatch, batching._SHORT_S / (fit + 0.5))
        batcher = Batcher(engine, name="test", max_batch=64, max_queue=64)
        await recommend(batcher, Request("a", 1))
        engine.calls.clear()
        await asyncio.gather(*[recommend(batcher, Request("a", 1)) for _ in range(50)])
        assert [count for _, count in engine.calls] == calls
        assert {thread == here for thread, _ in engine.calls} == {fit >= 8}
        batcher.close()

    run(test())


@pytest.mark.parametrize(("took", "stays"), [(0.9, True), (1.5, False)])
def test_one_call_that_took_longer_makes_no_long_ones_of_all(
    took: float, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else had the processor: that says little of the next call, unless it was for long."""

    async def test() -> None:
        here, engine = threading.get_ident(), Timed(monkeypatch, batching._SHORT_S / 20)
        batcher = Batcher(engine, name="test", max_batch=64, max_queue=64)
        await recommend(batcher, Request("a", 1))
        await recommend(batcher, Request("a", 1))
        engine.each_s = took * batching._SHORT_S
        await recommend(batcher, Request("a", 1))
        engine.each_s = batching._SHORT_S / 20
        engine.calls.clear()
        await asyncio.gather(*[recommend(batcher, Request("a", 1)) for _ in range(3)])
        assert [(thread == here, count) for thread, count in engine.calls] == [(stays, 3)]
        batcher.close()

    run(test())


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_who_cannot_take_an_answer_disturbs_nobody(
    in_thread: bool, fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy:
        def done(self) -> bool:
            return False

        def set_result(self, _: object) -> None:
            raise ValueError("dropped")

        set_exception = set_result

        def cancel(self) -> None:
            pass

    async def test() -> None:
        engine = Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        await recommend(batcher, Request("a", 1))
        if in_thread:
            monkeypatch.setattr(batching, "_SHORT_S", 0.0)
        other: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        batcher.take(Request("a", 1), Clumsy())
        batcher.take(Request("boom" if fails else "a", 1), other)
        (outcome,) = await asyncio.gather(other, return_exceptions=True)
        assert isinstance(outcome, EngineFailedError if fails else Recommendation)
        assert len(engine.threads) == 2
        assert (await recommend(batcher, Request("a", 1))).source == "popular"
        batcher.close()

    run(test())
    assert "could not be given" in caplog.text


def test_an_error_of_a_short_call_reaches_its_callers_only() -> None:
    async def test() -> None:
        engine = Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        await recommend(batcher, Request("a", 1))
        with pytest.raises(EngineFailedError):
            await recommend(batcher, Request("boom", 1))
        assert (await recommend(batcher, Request("a", 1))).source == "popular"
        assert engine.threads[1:] == [threading.get_ident()] * 2
        batcher.close()

    run(test())


def test_a_slow_request_now_and_then_makes_no_short_calls_of_the_others() -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        slow = []
        for number in range(30):
            engine.seconds = 0.02 if number % 6 == 5 else 0.0
            await recommend(batcher, Request("a", 1))
            if engine.seconds:
                slow.append(engine.threads[-1] == here)
        assert slow == [True, False, False, False, False]  # only the first is a surprise
        batcher.close()

    run(test())


def test_special_requests_say_nothing_of_plain_short_ones() -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        plain, special = Request("a", 1), Request("a", 1, category="c")
        where: list[list[bool]] = []
        for request, seconds in ((plain, 0.0), (special, 0.01), (plain, 0.0), (special, 0.01)):
            engine.seconds = seconds
            engine.threads.clear()
            for _ in range(3):
                await recommend(batcher, request)
            where.append([thread == here for thread in engine.threads])
        assert where == [[False, True, True], [False] * 3, [True] * 3, [False] * 3]
        engine.threads.clear()
        await asyncio.gather(*[recommend(batcher, request) for request in (plain, plain, special)])
        assert engine.threads != [here]  # one of them makes it long
        batcher.close()

    run(test())


@pytest.mark.parametrize("name", ["exclude", "allow", "history"])
def test_long_lists_are_never_taken_for_short_calls(name: str) -> None:
    async def test() -> None:
        here, engine = threading.get_ident(), Worker()
        batcher = Batcher(engine, name="test", max_batch=8, max_queue=16)
        few, many = (Request("a", 1)._replace(**{name: ("i",) * count}) for count in (1, 101))  # type: ignore[arg-type]
        for request in (few, few, many, few, many):
            await recommend(batcher, request)
        assert [thread == here for thread in engine.threads] == [False, True, False, True, False]
        batcher.close()

    run(test())
