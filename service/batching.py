"""Batching without waiting: requests that arrive during a model call are answered together by the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from service.engine import Recommendation, Request

if TYPE_CHECKING:
    from collections.abc import Sequence


_TURNS = 3
"""Turns of the event loop before a call, none of which waits: it sends the last answers and reads what has come.

A call for the first of several requests would fight the event loop, which reads the others, for the interpreter.
"""


class Recommender(Protocol):
    """What a batcher calls, in its worker thread."""

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Return one recommendation per request, in order."""


class QueueFullError(Exception):
    """Too many requests are waiting."""


class Batcher:
    """One engine, one worker thread, one queue. Lives in one event loop.

    An idle batcher starts a call as soon as the event loop has taken in what is there already; a busy one collects. So
    a batch has more than one request only where requests come together or the engine is the bottleneck, and nobody
    ever waits for company to come.

    Args:
        engine: Called in the worker thread only, one call at a time.
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
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{name}")

    async def recommend(self, user_id: str, k: int) -> Recommendation:
        """Queue one request and wait for its answer.

        A caller that is cancelled while it waits takes its own request out of the next batch and disturbs no other.

        Raises:
            QueueFullError: ``max_queue`` requests wait already.
            Exception: Whatever the engine raised for the batch; the next batch starts afresh.
        """
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Recommendation] = loop.create_future()
        self._waiting.append((Request(user_id, k), future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start_after, _TURNS)
        return await future

    def close(self) -> None:
        """Wait for the call in flight and end the worker thread; requests still waiting are cancelled."""
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
        call = asyncio.get_running_loop().run_in_executor(self._pool, self._engine.recommend_many, requests)
        futures = [future for _, future in batch]
        call.add_done_callback(lambda done: self._finish(done, futures))

    def _finish(
        self, call: asyncio.Future[list[Recommendation]], futures: list[asyncio.Future[Recommendation]]
    ) -> None:
        error = call.exception()
        answers = [] if error else call.result()
        for position, future in enumerate(futures):
            if future.done():
                continue
            if error is None:
                future.set_result(answers[position])
            else:
                future.set_exception(error)
        asyncio.get_running_loop().call_soon(self._start_after, _TURNS)
