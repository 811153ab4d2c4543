"""Batching without waiting: requests that arrive during a model call are answered together by the next one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from service.observe.cells import Cells
from service.observe.metrics import ModelMetrics
from service.values import Recommendation, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOG = logging.getLogger(__name__)
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
_MANY = 100
"""Items of an answer from which on they, and not the search, may be what takes long; ids in a request from which on it
goes to the worker thread whatever others took."""
_MOST_WORK = 4096
"""Items and ids of the requests of one call, the last one's excepted: some ten milliseconds, for the next to wait."""
_PLAIN = Request("", 1)[2:]

_Entry = tuple[Request, asyncio.Future[Recommendation], float]
_Outcome = list[Recommendation] | BaseException


class Recommender(Protocol):
    """What a batcher calls, one call at a time."""

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Return one recommendation per request, in order."""


class QueueFullError(Exception):
    """Too many requests are waiting."""


class EngineFailedError(Exception):
    """The engine failed on a batch; the log says why, once for all of the batch."""


class _Expected:
    """What one request of a kind is expected to take: the longest of late.

    Not the mean: one slow request among many fast ones is one that the event loop waits for.
    """

    def __init__(self) -> None:
        self.seconds = math.inf

    def learn(self, seconds: float) -> None:
        known = self.seconds
        self.seconds = max(seconds, seconds if math.isinf(known) else known + _NEWS * (seconds - known))


class Batcher:
    """One engine, one worker thread, one queue. Lives in one event loop, which no call keeps for long.

    An idle batcher starts a call as soon as the event loop has taken in what is there already; a busy one collects. So
    a batch has more than one request only where requests come together or the engine is the bottleneck, and nobody
    ever waits for company to come.

    Plain requests take alike; those with filters, a history or many items take as long as these say. Both kinds are
    learnt about separately, so that neither lends the other its name. A call takes no more work than others can wait
    for, and takes turns between requests that came alone and those that came many at once.

    Args:
        engine: Called one call at a time; in the worker thread, or, where calls have turned out to be short, in the
            event loop itself.
        name: Names the thread, and the model in the log.
        max_batch: Most requests of one call.
        max_queue: Most requests waiting.
        metrics: Of the model; without them nobody sees what is measured.
    """

    def __init__(
        self,
        engine: Recommender,
        *,
        name: str,
        max_batch: int,
        max_queue: int,
        metrics: ModelMetrics | None = None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[_Entry] = deque()
        self._crowd: deque[_Entry] = deque()
        self._metrics = metrics or ModelMetrics(Cells(), name)
        self._call_seconds = 0.0
        # A call belongs to many requests: what it logs must not carry the id of the one that came first.
        self._context = contextvars.Context()
        self._busy = self._sweeping = False
        self._plain = _Expected()
        self._special = _Expected()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{name}")

    @property
    def waiting(self) -> int:
        """How many requests wait to be taken into a batch."""
        return len(self._waiting) + len(self._crowd)

    @property
    def room(self) -> int:
        """How many more may wait."""
        return self._max_queue - self.waiting

    def take(self, request: Request) -> asyncio.Future[Recommendation]:
        """Queue one request, see `submit`, if there is room.

        Raises:
            QueueFullError: ``max_queue`` requests wait already, or the batcher is closed.
        """
        if self.waiting >= self._max_queue:
            raise QueueFullError
        return self.submit(request)

    def submit(self, request: Request, *, in_crowd: bool = False) -> asyncio.Future[Recommendation]:
        """Queue one request whatever the room; the answer is the future's result.

        Where the engine fails on its batch, an `EngineFailedError` is the outcome; the next batch starts afresh. Who
        cancels the future takes the request out of the queue, with `sweep_soon`, and disturbs no other.

        Args:
            request: The request.
            in_crowd: Whether many came with it: those that come alone do not wait for all of them.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Recommendation] = loop.create_future()
        (self._crowd if in_crowd else self._waiting).append((request, future, time.perf_counter()))
        self._metrics.depth[0] = self.waiting
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start, context=self._context)
        return future

    def sweep_soon(self) -> None:
        """Give the places of cancelled futures to others: once, however many are cancelled together."""
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_soon(self._sweep)

    def close(self) -> None:
        """Wait for the call in flight and end the worker thread.

        Requests still waiting are cancelled, later ones refused.
        """
        self._max_queue = 0
        for queue in (self._waiting, self._crowd):
            while queue:
                queue.popleft()[1].cancel()
        self._metrics.depth[0] = 0
        self._pool.shutdown(wait=True)

    def _sweep(self) -> None:
        self._sweeping = False
        self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        self._crowd = deque(entry for entry in self._crowd if not entry[1].done())
        self._metrics.depth[0] = self.waiting

    def _start_after(self, turns: int) -> None:
        if turns > 1:
            asyncio.get_running_loop().call_soon(self._start_after, turns - 1)
        else:
            self._start()

    def _start(self) -> None:
        requests: list[Request] = []
        futures: list[asyncio.Future[Recommendation]] = []
        special, work, long = 0, 0, False
        now, waited = time.perf_counter(), self._metrics.queue.observe
        queue, other = self._waiting, self._crowd
        while (queue or other) and len(requests) < self._max_batch and work < _MOST_WORK:
            request, future, came = queue.popleft() if queue else other.popleft()
            if future.done():  # its caller was cancelled
                continue
            if other:
                queue, other = other, queue
            requests.append(request)
            futures.append(future)
            waited(now - came)
            work += request.k
            if request.k > _MANY or request[2:] != _PLAIN:
                special += 1
                ids = _ids_of(request)
                work += ids
                long = long or ids > _MANY
        self._metrics.depth[0] = self.waiting
        self._busy = bool(requests)
        if not requests:
            return
        self._metrics.batch.observe(len(requests))
        expected = (len(requests) - special) * self._plain.seconds if special < len(requests) else 0.0
        if special:
            expected += special * self._special.seconds
        if expected <= _SHORT_S and not long:
            self._finish(self._answer(requests, special), futures)
            return
        call = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, requests, special)
        call.add_done_callback(lambda done: self._finish(done.result(), futures))

    def _answer(self, requests: Sequence[Request], special: int) -> _Outcome:
        """Call the engine, in whichever thread, and note how long it took."""
        started, began = time.thread_time(), time.perf_counter()
        outcome: _Outcome
        try:
            outcome = self._engine.recommend_many(requests)
            if len(outcome) != len(requests):
                raise RuntimeError(f"{len(outcome)} answers to {len(requests)} requests")
        except BaseException as error:  # noqa: BLE001 (whatever it is, its callers must not wait for ever)
            outcome = error
        seconds = time.thread_time() - started
        self._call_seconds = time.perf_counter() - began
        # A mixed batch tells nothing of its plain part; that the rest took it all errs on the side of the thread.
        (self._special if special else self._plain).learn(seconds / (special or len(requests)))
        return outcome

    def _finish(self, outcome: _Outcome, futures: Sequence[asyncio.Future[Recommendation]]) -> None:
        self._metrics.engine.observe(self._call_seconds)
        self._hand_out(outcome, futures)
        # After the futures' own callbacks: those who have their answers do not wait for the next call.
        asyncio.get_running_loop().call_soon(self._start_after, _TURNS if len(futures) > 1 else 1)

    def _hand_out(self, outcome: _Outcome, futures: Sequence[asyncio.Future[Recommendation]]) -> None:
        if isinstance(outcome, BaseException):
            _LOG.error("%s: the engine failed on %d requests", self._name, len(futures), exc_info=outcome)
            for future in futures:
                if not future.done():
                    future.set_exception(EngineFailedError())
            return
        made = self._metrics.sources
        for future, answer in zip(futures, outcome, strict=True):
            if not future.done():
                made[answer.source][0] += 1.0
                future.set_result(answer)


def _ids_of(request: Request) -> int:
    return len(request.exclude) + len(request.allow or ()) + len(request.history)


async def recommend_all(questions: Sequence[tuple[Batcher, Request]]) -> list[Recommendation]:
    """Queue many requests with their batchers at once, all or none, and wait for all answers.

    Returns:
        One recommendation per request, in order.

    Raises:
        QueueFullError: Not all of them find room.
        EngineFailedError: An engine failed on one of their batches.
    """
    batchers = Counter(batcher for batcher, _ in questions)
    if any(count > batcher.room for batcher, count in batchers.items()):
        raise QueueFullError
    try:
        return await asyncio.gather(*[batcher.submit(request, in_crowd=True) for batcher, request in questions])
    except asyncio.CancelledError:
        for batcher in batchers:
            batcher.sweep_soon()
        raise
