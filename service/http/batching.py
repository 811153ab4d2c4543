"""Batching without waiting: requests that arrive during a model call are answered together by the next one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from service.http.expected import Expected
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
"""Seconds that a call may keep the event loop, and that it may take longer than usual now and then. What is expected
to take longer goes to the worker thread.

Handing a call over and back costs more than a hundred microseconds of waking up and of changing hands on the
interpreter, which for a catalogue of some ten thousand items is more than the answer itself.
"""
_ENOUGH = 8
"""Requests of one call: more of them hardly take less each. Where so many are short, more than are short wait for the
next call, and do not make this one a long one."""
_MANY = 100
"""Items of an answer from which on they, and not the search, may be what takes long; ids in a request from which on it
goes to the worker thread whatever others took."""
_MOST_WORK = 4096
"""Items and ids of the requests of one call, the last one's excepted: some ten milliseconds, for the next to wait."""
_PLAIN = Request("", 1)[2:]

_Outcome = list[Recommendation] | BaseException


class Taker(Protocol):
    """Who waits for an answer, and is given one outcome of three, in the event loop; `asyncio.Future` is one."""

    def done(self) -> bool:
        """Tell whether nothing is waited for any more."""

    def set_result(self, answer: Recommendation, /) -> object:
        """Take the answer."""

    def set_exception(self, error: EngineFailedError, /) -> object:
        """Take it that there is none, for the engine has failed."""

    def cancel(self) -> object:
        """Take it that there is none, for the batcher closes."""


_Entry = tuple[Request, Taker, float]


class Recommender(Protocol):
    """What a batcher calls, one call at a time."""

    def recommend_many(self, requests: Sequence[Request]) -> list[Recommendation]:
        """Return one recommendation per request, in order."""


class QueueFullError(Exception):
    """Too many requests are waiting."""


class EngineFailedError(Exception):
    """The engine failed on a batch; the log says why, once for all of the batch."""


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
        self._plain = Expected()
        self._special = Expected()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{name}")

    @property
    def waiting(self) -> int:
        """How many requests wait to be taken into a batch."""
        return len(self._waiting) + len(self._crowd)

    @property
    def room(self) -> int:
        """How many more may wait."""
        return self._max_queue - self.waiting

    def take(self, request: Request, taker: Taker) -> None:
        """Queue one request, see `submit`, if there is room.

        Raises:
            QueueFullError: ``max_queue`` requests wait already, or the batcher is closed.
        """
        if self.waiting >= self._max_queue:
            raise QueueFullError
        self.submit(request, taker)

    def submit(self, request: Request, taker: Taker, *, in_crowd: bool = False) -> None:
        """Queue one request whatever the room.

        Where the engine fails on its batch, an `EngineFailedError` is the outcome; the next batch starts afresh. A
        taker that is done before it has an outcome leaves the queue with `sweep_soon`, and disturbs no other.

        Args:
            request: The request.
            taker: Is given the outcome, later.
            in_crowd: Whether many came with it: those that come alone do not wait for all of them.
        """
        (self._crowd if in_crowd else self._waiting).append((request, taker, time.perf_counter()))
        self._metrics.depth[0] = self.waiting
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._start, context=self._context)

    def sweep_soon(self) -> None:
        """Give the places of takers that are done to others: once, however many are so together."""
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
        takers: list[Taker] = []
        special, work, long = 0, 0, False
        now, waited = time.perf_counter(), self._metrics.queue.observe
        queue, other = self._waiting, self._crowd
        most = self._max_batch
        if len(queue) + len(other) > _ENOUGH:
            short = self._plain.most(_SHORT_S)
            most = min(most, short) if short >= _ENOUGH else most
        while (queue or other) and len(requests) < most and work < _MOST_WORK:
            request, taker, came = queue.popleft() if queue else other.popleft()
            if taker.done():
                continue
            if other:
                queue, other = other, queue
            requests.append(request)
            takers.append(taker)
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
        if not long and self._is_short(len(requests) - special, special):
            self._finish(self._answer(requests, special), takers)
            return
        call = asyncio.get_running_loop().run_in_executor(self._pool, self._answer, requests, special)
        call.add_done_callback(lambda done: self._finish(done.result(), takers))

    def _is_short(self, plain: int, special: int) -> bool:
        """Tell whether a call of so many requests of both kinds may stay in the event loop."""
        seconds = surprise = 0.0
        for kind, count in ((self._plain, plain), (self._special, special)):
            if count:
                seconds += kind.seconds(count)
                surprise += kind.surprise
        return max(seconds, surprise) <= _SHORT_S

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
        (self._special if special else self._plain).learn(special or len(requests), seconds)
        return outcome

    def _finish(self, outcome: _Outcome, takers: Sequence[Taker]) -> None:
        self._metrics.engine.observe(self._call_seconds)
        if isinstance(outcome, BaseException):
            _LOG.error("%s: the engine failed on %d requests", self._name, len(takers), exc_info=outcome)
        made = self._metrics.sources
        for position, taker in enumerate(takers):
            if taker.done():
                continue
            try:
                if isinstance(outcome, BaseException):
                    taker.set_exception(EngineFailedError())
                else:
                    made[outcome[position].source][0] += 1.0
                    taker.set_result(outcome[position])
            except Exception:  # noqa: BLE001 (others wait, too)
                _LOG.exception("%s: an answer could not be given", self._name)
        if len(takers) > 1 or self.waiting:
            # After whatever the takers have called for: those who have their answers do not wait for the next call.
            asyncio.get_running_loop().call_soon(self._start_after, _TURNS if len(takers) > 1 else 1)
        else:
            self._busy = False


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
    loop = asyncio.get_running_loop()
    answers: list[asyncio.Future[Recommendation]] = []
    for batcher, request in questions:
        answers.append(loop.create_future())
        batcher.submit(request, answers[-1], in_crowd=True)
    try:
        return await asyncio.gather(*answers)
    except asyncio.CancelledError:
        for batcher in batchers:
            batcher.sweep_soon()
        raise
