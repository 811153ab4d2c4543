"""What the service costs over HTTP, beside a constant reply of the same framework and the engine without HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_client import Connection, Server, running, serve_arguments
from benchmarks.load.client import Connections, Question
from benchmarks.load.engine import EngineProcess, engine_process
from benchmarks.load.loops import Slice, arrivals, closed_loop, open_loop
from benchmarks.load.process import Others, TreeMeter
from benchmarks.load.questions import Asked, Constant
from benchmarks.load.tree import processes

CONCURRENCY = (1, 8, 32)
"""Closed loops: requests under way at any time."""
FRACTIONS = (0.25, 0.5, 0.75, 0.9, 1.1)
"""Open loops: rates, as shares of what the bundle's service answers in the closed loop of most requests."""
BUNDLE, CONSTANT = "bundle", "constant"
_MOST_CONNECTIONS = 64
_IDLE_S = 2.0
"""Connections of an open loop: no more than are in turn again after so long; uvicorn closes what is idle for 5 s."""
_TYPICAL = 101


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: Rounds, at least 2; the unit of the bootstrap.
        seconds: Length of a slice; every endpoint has one at each load in a round.
        k: Items per reply.
        seed: Draws users, times of arrival, order and resamples.
    """

    rounds: int = 10
    seconds: float = 0.5
    k: int = 10
    seed: int = 0


class Load(NamedTuple):
    """How an endpoint is loaded.

    Attributes:
        name: For the document.
        concurrency: Of a closed loop; 0 for an open one.
        fraction: Of an open loop, see ``FRACTIONS``; 0 for a closed one.
    """

    name: str
    concurrency: int = 0
    fraction: float = 0.0


CLOSED = tuple(Load(f"closed_{count}", concurrency=count) for count in CONCURRENCY)
OPEN = tuple(Load(f"open_{fraction:.2f}", fraction=fraction) for fraction in FRACTIONS)


@dataclass(frozen=True)
class Measured:
    """One slice.

    Attributes:
        round: Its round.
        endpoint: What was loaded.
        load: How.
        rate: Requests that were due per second; 0 in a closed loop.
        seen: By the client.
        server_cpu: CPU seconds of the server meanwhile.
        resident: Resident bytes of the server afterwards.
    """

    round: int
    endpoint: str
    load: Load
    rate: float
    seen: Slice
    server_cpu: float
    resident: int

    @property
    def throughput(self) -> float:
        """Replies per second."""
        return self.seen.requests / self.seen.elapsed


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: Name of each bundle → the bundle; the first is ``bundle``.
        options: How much was measured.
        reply_bytes: Length of the constant reply.
        slices: In the order in which they ran.
        engine_cpu: CPU seconds per user of the bundle's engine in batches, in each round.
        other_cores: Cores that programs other than this benchmark kept busy meanwhile, or the host took away.
    """

    asked: dict[str, Asked]
    options: Options
    reply_bytes: int
    slices: list[Measured]
    engine_cpu: list[float]
    other_cores: float = 0.0


class Endpoint:
    """One of the things that are loaded.

    Args:
        server: Where it is.
        questions: What it is asked, each as likely as any other.
        generator: Draws them.
    """

    def __init__(self, server: Server, questions: Sequence[Question], generator: np.random.Generator) -> None:
        self._address = server.host, server.port
        self._meter = TreeMeter(server.pid)
        self._questions = questions
        self._generator = generator

    def _endless(self) -> Iterator[Question]:
        while True:
            for position in self._generator.integers(len(self._questions), size=4096).tolist():
                yield self._questions[position]

    def closed(self, concurrency: int, seconds: float) -> tuple[Slice, float, int]:
        """Load it in a closed loop; return what was seen, the server's CPU seconds and its resident bytes."""
        return self._measured(concurrency, lambda on, what: closed_loop(on, what, seconds))

    def open(self, due: NDArray[np.float64]) -> tuple[Slice, float, int]:
        """Load it in an open loop, see ``closed``."""
        count = max(1, min(_MOST_CONNECTIONS, int(_IDLE_S * len(due) / due[-1])))
        return self._measured(count, lambda on, what: open_loop(on, what, due))

    def _measured(
        self, count: int, loop: Callable[[Connections, Iterator[Question]], Slice]
    ) -> tuple[Slice, float, int]:
        with Connections(self._address, count) as connections:
            connections.ask_each(self._questions)
            before = self._meter.cpu_seconds()
            seen = loop(connections, self._endless())
            return seen, self._meter.cpu_seconds() - before, self._meter.resident_bytes()


def slices_of_a_round(n_bundles: int) -> int:
    """Return how many slices a round has, that of the engine included."""
    return (n_bundles + 1) * (len(CLOSED) + len(OPEN)) + 1


def measure(
    bundle: Path, dvib: Sequence[Path], options: Options, on_slice: Callable[[str], None] = lambda _: None
) -> Run:
    """Load the service, the constant endpoint and the engine in turns, in short slices and in random order.

    The service is one ``dvib-serve`` process with all bundles, the constant endpoint a second process and the engine a
    third: all are there all the time, and one of them works at a time. The closed loops of a round come before its open
    ones, whose rates are shares of what the round has shown to be possible; slices of the same load come one after the
    other.

    Args:
        bundle: The bundle that the bars are about.
        dvib: Bundles beside it.
        options: How much is measured.
        on_slice: Called before each slice with a description.

    Raises:
        BundleError: A bundle is unusable.
        ServerError: A server fails.
        DvibError: This machine does not show what a process uses.
    """
    names = [BUNDLE, *(f"dvib{number or ''}" for number in range(len(dvib)))]
    folders = zip(names, [bundle, *dvib], strict=True)
    asked = {name: Asked.read(folder, options.k, options.seed) for name, folder in folders}
    generator = np.random.default_rng(options.seed)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_process(asked[BUNDLE].folder, options.k, options.seed))
        arguments = serve_arguments({name: one.folder for name, one in asked.items()})
        service = stack.enter_context(running("service", *arguments))
        length = typical_length(service, asked[BUNDLE], options.k)
        document = json.dumps({CONSTANT: length})
        constant = stack.enter_context(running("benchmarks.load.arm_server", document))
        endpoints = {name: Endpoint(service, one.questions(name, options.k), generator) for name, one in asked.items()}
        endpoints[CONSTANT] = Endpoint(constant, [Constant.of(length)], generator)
        run = Run(asked, options, length, [], [])
        _warm_up(endpoints, engine, options, on_slice)
        others = Others(processes(os.getpid()))
        for number in range(options.rounds):
            _round(run, number, endpoints, engine, generator, on_slice)
        return replace(run, other_cores=others.cores())


def typical_length(server: Server, asked: Asked, k: int) -> int:
    """Return the median length of the replies to some users, in bytes."""
    with closing(Connection(server.host, server.port, BUNDLE, k)) as connection:
        lengths = [len(connection.post(connection.target(user))) for user in asked.users[:_TYPICAL]]
    return round(float(np.median(lengths)))


def _warm_up(
    endpoints: dict[str, Endpoint], engine: EngineProcess, options: Options, on_slice: Callable[[str], None]
) -> None:
    on_slice("warming up")
    engine.cpu_per_user(options.seconds)
    for endpoint in endpoints.values():
        endpoint.closed(max(CONCURRENCY), options.seconds)


def _round(
    run: Run,
    number: int,
    endpoints: dict[str, Endpoint],
    engine: EngineProcess,
    generator: np.random.Generator,
    on_slice: Callable[[str], None],
) -> None:
    options = run.options

    def closed(name: str, load: Load) -> None:
        on_slice(f"{name}, {load.concurrency} at a time")
        seen = endpoints[name].closed(load.concurrency, options.seconds)
        run.slices.append(Measured(number, name, load, 0.0, *seen))

    def open_(name: str, load: Load, due: NDArray[np.float64]) -> None:
        on_slice(f"{name}, {load.fraction:.0%} of saturation")
        run.slices.append(Measured(number, name, load, len(due) / options.seconds, *endpoints[name].open(due)))

    def alone() -> None:
        on_slice("engine")
        run.engine_cpu.append(engine.cpu_per_user(options.seconds))

    # What is compared follows each other closely.
    first: list[list[Callable[[], None]]] = [[partial(closed, name, load) for name in endpoints] for load in CLOSED]
    first[-1].append(alone)
    _in_random_order(first, generator)
    saturation = next(
        slice_.throughput
        for slice_ in reversed(run.slices)
        if (slice_.endpoint, slice_.load.concurrency) == (BUNDLE, max(CONCURRENCY))
    )
    then: list[list[Callable[[], None]]] = []
    for load in OPEN:
        due = arrivals(load.fraction * saturation, options.seconds, generator)
        then.append([partial(open_, name, load, due) for name in endpoints])
    _in_random_order(then, generator)


def _in_random_order(groups: Sequence[Sequence[Callable[[], None]]], generator: np.random.Generator) -> None:
    """Do the groups in an order drawn at random, and what each holds likewise."""
    for which in generator.permutation(len(groups)):
        for position in generator.permutation(len(groups[which])):
            groups[which][position]()
