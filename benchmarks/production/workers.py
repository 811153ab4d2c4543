"""What another worker costs: memory that is not shared, and what it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundle_facts import bundle_facts, bundle_line
from benchmarks.http_client import ServerError
from benchmarks.load.process import Meter
from benchmarks.load.questions import Asked
from benchmarks.load.tree import Memory, leaves, total, tree_memory
from benchmarks.production.clients import Clients
from benchmarks.production.service import service_and_clients
from benchmarks.production.verdict import Bar, Verdict, faults_of

EACH = 90e6
"""The bar: bytes that every worker after the first may add to what all processes of the service hold.

PSS divides a page by the processes that have it, and the one that has loaded the bundle has every page that its workers
share: alone with one worker it bears half of them, with four a fifth. A sum over the workers alone is therefore shown,
and not judged: it grows though nothing is added."""
MANY = 50
"""Requests that every worker must have answered, at the least, before its memory is read."""
_PER_WORKER = 16
_MOST_ROUNDS = 20
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        workers: How many are compared with one.
        seconds: Length of each round of load; there are as many rounds as it takes until every worker has worked.
        k: Items per reply.
        seed: Draws users.
    """

    workers: int = 4
    seconds: float = 5.0
    k: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Held:
    """A service after it has answered.

    Attributes:
        workers: What each worker holds.
        tree: What all its processes hold.
        processes: How many there are.
        answered: Requests that each worker has answered, told by its share of the CPU time.
        per_second: Right replies per second in each round.
        errors: What was wrong with others.
        client_share: Share of a core that the client used at most.
    """

    workers: list[Memory]
    tree: Memory
    processes: int
    answered: list[float]
    per_second: list[float]
    errors: dict[str, int]
    client_share: float

    @property
    def speed(self) -> float:
        """Median of the rounds' right replies per second."""
        return float(np.median(self.per_second))

    @property
    def proportional(self) -> int:
        """PSS of all workers."""
        return total(self.workers).proportional


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: The bundle.
        options: How much was measured.
        one: With one worker.
        many: With several.
    """

    asked: Asked
    options: Options
    one: Held
    many: Held


def measure(bundle: Path, options: Options, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Start the service with one worker and with several, let every worker answer, and read what they hold.

    Args:
        bundle: The bundle, or its root of published versions.
        options: How much is measured.
        on_step: Told what begins.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The service does not start, is gone, or has another number of workers than it was told.
    """
    asked = Asked.read(bundle, options.k, options.seed)
    one, many = (_held(asked, options, count, on_step) for count in (1, options.workers))
    return Run(asked, options, one, many)


def _held(asked: Asked, options: Options, count: int, on_step: Callable[[str], None]) -> Held:
    on_step(f"starting {count} workers")
    variables = {"DVIB_SERVE_WORKERS": str(count)}
    with service_and_clients(asked, options.k, options.seed, variables=variables) as (server, clients):
        workers = leaves(server.pid)
        if len(workers) != count:
            raise ServerError(f"the service was started with {count} workers and has {len(workers)}")
        speeds, answered, errors, share = _work(clients, workers, options, on_step)
        everyone = tree_memory(server.pid)
        if leaves(server.pid) != workers:
            raise ServerError("workers of the service ended while they were measured")
        return Held(
            [everyone[worker] for worker in workers],
            total([*everyone.values()]),
            len(everyone),
            answered,
            speeds,
            errors,
            share,
        )


def _work(
    clients: Clients, workers: list[int], options: Options, on_step: Callable[[str], None]
) -> tuple[list[float], list[float], dict[str, int], float]:
    """Load until everybody has answered many; connections are new in each round, and go to whoever accepts them."""
    meters = [Meter(worker) for worker in workers]
    before = np.array([meter.cpu_seconds() for meter in meters])
    speeds: list[float] = []
    errors: dict[str, int] = {}
    requests, share = 0, 0.0
    answered = np.zeros(len(workers))
    while len(speeds) < _MOST_ROUNDS and (len(speeds) < _LEAST_ROUNDS or answered.min() < MANY):
        on_step(f"{len(workers)} workers, round {len(speeds) + 1}")
        seen = clients.closed(_PER_WORKER * len(workers), options.seconds)
        speeds.append(seen.accepted_per_second)
        requests += len(seen.latencies)
        share = max(share, seen.client_share)
        for fault, times in seen.errors.items():
            errors[fault] = errors.get(fault, 0) + times
        used = np.array([meter.cpu_seconds() for meter in meters]) - before
        answered = requests * used / used.sum()
    return speeds, answered.round(1).tolist(), errors, share


def judge(run: Run) -> Verdict:
    """Say what the run says."""
    more = EACH * (run.options.workers - 1)
    bars = [
        Bar(
            "tree",
            f"PSS of all processes with {run.options.workers} workers",
            run.many.tree.proportional / 1e6,
            (run.one.tree.proportional + more) / 1e6,
            "MB",
            f"(with one worker {run.one.tree.proportional / 1e6:.1f} MB)",
        ),
    ]
    faults = faults_of(run.one.errors, "1 worker") + faults_of(run.many.errors, f"{run.options.workers} workers")
    doubts = [
        f"a worker of {len(held.workers)} has answered about {min(held.answered):.0f} requests only, wanted {MANY}"
        for held in (run.one, run.many)
        if min(held.answered) < MANY
    ]
    return Verdict(bars, faults, doubts)


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    yield bundle_line(run.asked.manifest, run.options.k)
    yield f"{'workers':<8}{'right/s':>9}{'processes':>11}{'PSS of all':>12}{'RSS and PSS of each worker':>30}, MB"
    for held in (run.one, run.many):
        each = "  ".join(f"{one.resident / 1e6:.1f}/{one.proportional / 1e6:.1f}" for one in held.workers)
        all_ = held.tree.proportional / 1e6
        yield f"{len(held.workers):<8}{held.speed:>9.0f}{held.processes:>11}{all_:>12.1f}    {each}"
    if max(run.one.client_share, run.many.client_share) > 0.9:
        yield "the client was busy and may have set the pace of what is answered per second"
    yield (
        f"the workers alone: {run.many.proportional / 1e6:.1f} MB, one {run.one.proportional / 1e6:.1f} MB; of what "
        "they share, the process that has loaded the bundle bears a part, the smaller the more they are"
    )
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values."""
    return {
        "bundle": bundle_facts(run.asked.manifest),
        "options": asdict(run.options),
        "verdict": verdict.document(),
        "services": [
            {
                "workers": [one._asdict() for one in held.workers],
                "tree": held.tree._asdict(),
                "processes": held.processes,
                "requests_of_each_worker": held.answered,
                "per_second": held.per_second,
                "busiest_client": held.client_share,
            }
            for held in (run.one, run.many)
        ],
    }
