"""Ways to load a server: closed loops, in which the client waits for it, and open ones, in which it does not."""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.client import UNTIMED, Connections, Question, Reply

_SAMPLED = 50
"""Of so many replies one is kept, and checked in full when the slice is over."""


@dataclass(frozen=True)
class Slice:
    """What a stretch of load has shown.

    Attributes:
        latencies: Seconds of every right reply, float64 [n].
        late: Seconds by which requests went out after they were due, float64 [sent]; empty for a closed loop.
        elapsed: Seconds from the first request to the last reply.
        client_cpu: CPU seconds of this client meanwhile.
        errors: What was wrong with replies → how many.
        started: Nanoseconds of this machine's monotonic clock when it began.
        begun: Seconds from the start when the latency of each right reply began, float64 [n].
        held: Seconds of ``late`` in which no connection was free, float64 [sent]: the server's fault and not ours.
        error_latencies: What was wrong with replies → seconds of each, float64.
    """

    latencies: NDArray[np.float64]
    late: NDArray[np.float64]
    elapsed: float
    client_cpu: float
    errors: dict[str, int]
    started: int = 0
    begun: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    held: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    error_latencies: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Replies, right or wrong."""
        return len(self.latencies) + sum(self.errors.values())


class _Book:
    """Keeps what comes back."""

    def __init__(self) -> None:
        self._latencies: list[int] = []
        self._begun: list[int] = []
        self._wrong: defaultdict[str, list[int]] = defaultdict(list)
        self._errors: Counter[str] = Counter()
        self._kept: list[Reply] = []
        self.answered = 0
        self.late: list[int] = []
        self.held: list[int] = []
        self._cpu = time.thread_time()
        self._started = time.perf_counter_ns()

    def add(self, reply: Reply) -> None:
        self.answered += 1
        fault = reply.question.fault(reply.status, reply.body)
        if fault:
            self._errors[fault] += 1
            self._wrong[fault].append(reply.at - reply.since)
            return
        self._latencies.append(reply.at - reply.since)
        self._begun.append(reply.since - self._started)
        if self.answered % _SAMPLED == 1:
            self._kept.append(reply)

    def close(self) -> Slice:
        elapsed, cpu = time.perf_counter_ns() - self._started, time.thread_time() - self._cpu
        for reply in self._kept:
            fault = reply.question.fault_in_full(reply.body)
            if fault:
                self._errors[fault] += 1
        return Slice(
            latencies=_seconds(self._latencies),
            late=_seconds(self.late),
            elapsed=elapsed * 1e-9,
            client_cpu=cpu,
            errors=dict(self._errors),
            started=self._started,
            begun=_seconds(self._begun),
            held=_seconds(self.held),
            error_latencies={fault: _seconds(times) for fault, times in self._wrong.items()},
        )


def _seconds(nanoseconds: list[int]) -> NDArray[np.float64]:
    return np.array(nanoseconds, dtype=np.float64) * 1e-9


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector, which can take 10 ms, out of the latencies."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def arrivals(rate: float, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return when requests are due that come independently of each other (a Poisson process), at least one.

    Args:
        rate: Requests per second.
        seconds: Length of the slice.
        generator: Draws the gaps.

    Returns:
        Seconds from the start, float64 [n], ascending.
    """
    return np.cumsum(generator.exponential(1 / rate, size=max(1, round(rate * seconds))))


def closed_loop(connections: Connections, questions: Iterator[Question], seconds: float) -> Slice:
    """Ask over every connection, again as soon as the reply is there, for some time; then wait for what is under way.

    Args:
        connections: As many as requests shall be under way; all free.
        questions: Without end.
        seconds: How long new requests are sent.

    Raises:
        ServerError: The server fails.
    """
    with no_collection():
        book = _Book()
        end = time.perf_counter_ns() + int(seconds * 1e9)
        while connections.free:
            connections.ask(next(questions))
        while connections.busy:
            for reply in connections.replies():
                if reply.at < end:
                    connections.ask(next(questions))
                book.add(reply)
        return book.close()


def open_loop(connections: Connections, questions: Iterator[Question], due: NDArray[np.float64]) -> Slice:
    """Send requests when they are due, whether or not earlier ones have been answered.

    Latency counts from when a request was due, not from when it could be sent: a server that stands still for a second
    is charged for everybody who would have asked it meanwhile, and not for one request.

    Args:
        connections: All free. Where none is, a request that is due waits for one, and its latency counts meanwhile.
        questions: At least as many as times.
        due: Seconds from the start when requests are due, float64 [n], ascending.

    Raises:
        ServerError: The server fails.
    """
    with no_collection():
        book = _Book()
        start = time.perf_counter_ns()
        times = deque((start + (due * 1e9).astype(np.int64)).tolist())
        freed, full = start, False
        while book.answered < len(due):
            while times and connections.free and times[0] <= time.perf_counter_ns():
                since = times.popleft()
                connections.ask(next(questions), since)
                book.late.append(time.perf_counter_ns() - since)
                book.held.append(max(0, freed - since))
            full = not connections.free
            for reply in connections.replies(times[0] if times and connections.free else None):
                if full:
                    freed, full = reply.at, False
                book.add(reply)
        return book.close()


def closed_block(connections: Connections, questions: Sequence[Question], lead: int) -> list[float]:
    """Ask some questions over all connections at once and return how long each took.

    Before the first counted request and after the last, others keep the connections equally busy.

    Args:
        connections: All free.
        questions: Whose requests count.
        lead: Requests that come first and do not count.

    Returns:
        Seconds, in the order of the replies.

    Raises:
        ServerError: The server fails, or a reply is wrong.
    """
    wanted = len(questions)
    latencies: list[float] = []
    sent = 0

    def send() -> None:
        nonlocal sent
        counts = lead <= sent < lead + wanted
        connections.ask(questions[(sent - lead) % wanted], None if counts else UNTIMED)
        sent += 1

    while connections.free:
        send()
    while connections.busy:
        for reply in connections.replies():
            counts = reply.since != UNTIMED
            if len(latencies) + counts < wanted:
                send()
            connections.check(reply)
            if counts:
                latencies.append((reply.at - reply.since) * 1e-9)
    return latencies
