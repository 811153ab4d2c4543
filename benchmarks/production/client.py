"""A client in a process of its own: it reads jobs from stdin, loads the service, and writes what it has seen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_client import ServerError
from benchmarks.load.loops import Slice, arrivals, closed_loop, open_loop
from benchmarks.load.patient import LOST, PatientConnections
from benchmarks.load.questions import Recommend

READY = "ready"
REFUSED = "status 503"


@dataclass(frozen=True)
class Target:
    """Where to ask, and what.

    Attributes:
        host: Of the server.
        port: Of the server.
        model: Name of the model there.
        version: That every reply must name; where empty, any.
        k: Items per reply.
        users: External ids, each as likely as any other.
    """

    host: str
    port: int
    model: str
    version: str
    k: int
    users: list[str]


@dataclass(frozen=True)
class Job:
    """A stretch of load.

    Attributes:
        connections: How many; of a closed loop, the requests under way.
        seconds: How long requests are sent.
        rate: Requests per second of an open loop; 0 for a closed one.
        at: Nanoseconds of the monotonic clock when it begins, if the connections are there by then.
        seed: Draws users and times of arrival.
    """

    connections: int
    seconds: float
    rate: float = 0.0
    at: int = 0
    seed: tuple[int, ...] = (0,)


def perform(target: Target, questions: list[Recommend], job: Job) -> dict[str, Any]:
    """Do a job.

    Returns:
        What was seen, as JSON values; times in microseconds.

    Raises:
        ServerError: The server is gone.
    """
    generator = np.random.default_rng(job.seed)

    def endless() -> Iterator[Recommend]:
        while True:
            for position in generator.integers(len(questions), size=4096).tolist():
                yield questions[position]

    due = arrivals(job.rate, job.seconds, generator) if job.rate else np.empty(0)
    with PatientConnections((target.host, target.port), job.connections) as connections:
        connections.ask_in_turn(questions)
        time.sleep(max(0.0, (job.at - time.perf_counter_ns()) * 1e-9))
        seen = open_loop(connections, endless(), due) if job.rate else closed_loop(connections, endless(), job.seconds)
        return _document(seen, connections)


def _document(seen: Slice, connections: PatientConnections) -> dict[str, Any]:
    errors = {fault: count for fault, count in seen.errors.items() if fault not in {REFUSED, f"status {LOST}"}}
    return {
        "started": seen.started,
        "elapsed": seen.elapsed,
        "client_share": seen.client_cpu / seen.elapsed,
        "begun": microseconds(seen.begun),
        "latencies": microseconds(seen.latencies),
        "refused": microseconds(seen.error_latencies.get(REFUSED, np.empty(0))),
        "unadvised": connections.unadvised,
        "errors": errors | {f"no reply: {reason}": count for reason, count in connections.lost.items()},
        "late": microseconds(seen.late - seen.held),
    }


def microseconds(seconds: NDArray[np.float64]) -> list[int]:
    """Return times as whole microseconds, for JSON."""
    return [int(value) for value in (seconds * 1e6).round()]


def main() -> None:
    """Read the target from the first line of stdin, then a job from each line; answer each in a line of JSON."""
    target = Target(**json.loads(sys.stdin.readline()))
    questions = [Recommend.of(user, target.model, target.version, target.k) for user in target.users]
    _say(READY)
    for line in sys.stdin:
        try:
            _say(json.dumps(perform(target, questions, Job(**json.loads(line)))))
        except ServerError as error:
            _say(json.dumps({"failed": str(error)}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def as_line(value: Target | Job) -> str:
    """Return what ``main`` reads."""
    return json.dumps(asdict(value)) + "\n"


if __name__ == "__main__":
    main()
