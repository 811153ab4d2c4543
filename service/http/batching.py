"""Batching without waiting: requests that arrive during a model call are answered together by the next one."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from service.values import Recommendation, Request

if TYPE_CHECKING:
    from collections.abc import Sequence


_TURNS = 3
"""Turns of the event loop between two calls where several requests are about, none of which waits: it sends the last
answers, reads what has come, and the next call answers all of it."""
_SHORT_S = 2e-3
"""Seconds that a call may keep the event loop. What is expected to take longer goes to the worker thread.

Handing a call over and back costs more than a hundred microseconds of waking up and of changing hands on the
interpreter, which for a catalogue of some ten thousand items is more than the answer itself.
"""
_NEWS = 0.2
"""Weight of the latest call in what one request is expected to take, where it was shorter than that."""

_Outcome = list[Recommendation] | Exception


class Recommender(Protocol):
    """What a batcher calls, one call at a time."""

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Return one recommendation per request, in order."""


class QueueFullError(Exception):
    """Too many requests are waiting."""


class Batcher:
    """One engine, one worker thread, one queue. Lives in one event loop, which no call keeps for long.

    An idle batcher starts a call as soon as the event loop has taken in what is there already; a busy one collects. So
    a batch has more than one request only where requests come together or the engine is the bottleneck, and nobody
    ever waits for company to come.

    Args:
        engine: Called one call at a time; in the worker thread, or, where calls have turned out to be short, in the
            event loop itself.
        name: Names the thread.
        max_batch: Most requests of one call.
        max_queue: Most requests waiting.
    """

    def __init__(self, engine: Recommender, *, name: str, max_batch: int, max_queue: int) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[tuple[Request, asyncio.Future[Recommendation]]] = deque()
        self._busy = False
        self._seconds = math.inf
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{name}")

    async def recommend(self, request: Request) -> Recommendation:
        """Queue one request and wait for its answer.

        A caller that is cancelled while it waits takes its own request out of the next batch and disturbs no other.

        Raises:
            QueueFullError: ``max_queue`` requests wait already, or the batcher is closed.
            Exception: Whatever the engine raised for the batch; the next batch starts afresh.
        """
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Recommendation] = loop.create_future()
        self._waiting.append((request, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start)
        return await future

    def close(self) -> None:
        """Wait for the call in flight and end the worker thread.

        Requests still waiting are cancelled, later ones refused.
        """
        self._max_queue = 0
        while self._waiting:
            self._waiting.popleft()[1].cancel()
        self._pool.shutdown(wait=True)

    def _start_after(self, turns: int) -> None:
        if turns > 1:
            asyncio.get_running_loop().call_soon(self._start_after, turns - 1)
        else:
            self._start()

    def _start(self) -> None:
        batch: list[tuple[Request, asyncio.Future[Recommendation]]] = []
        while self._waiting and len(batch) < self._max_batch:
            request, future = self._waiting.popleft()
            if not future.done():  # its caller was cancelled
                batch.append((request, future))
        self._busy = bool(batch)
        if not batch:
            return
        requests = [request for request, _ in batch]
        futures = [future for _, future in batch]
        if len(batch) * self._seconds <= _SHORT_S:
            self._finish(self._answer(requests), futures)
            return
        call = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, requests)
        call.add_done_callback(lambda done: self._finish(done.result(), futures))

    def _answer(self, requests: Sequence[Request]) -> _Outcome:
        """Call the engine, in whichever thread, and note how long it took."""
        started = time.thread_time()
        outcome: _Outcome
        try:
            outcome = self._engine.recommend_many(requests)
        except Exception as error:  # noqa: BLE001 (each caller gets it)
            outcome = error
        each = (time.thread_time() - started) / len(requests)
        # The longest of late, and not the mean: one slow request among many fast ones is one that the loop waits for.
        faded = each if math.isinf(self._seconds) else self._seconds + _NEWS * (each - self._seconds)
        self._seconds = max(each, faded)
        return outcome

    def _finish(self, outcome: _Outcome, futures: Sequence[asyncio.Future[Recommendation]]) -> None:
        for position, future in enumerate(futures):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[position])
        asyncio.get_running_loop().call_soon(self._start_after, _TURNS if len(futures) > 1 else 1)
