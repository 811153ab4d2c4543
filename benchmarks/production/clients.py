"""Several client processes that load a service together, and what they have seen between them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_client import Server, ServerError
from benchmarks.load.questions import Asked
from benchmarks.production.client import READY, Job, Target, as_line, microseconds

MODEL = "bundle"
CLIENT_BUSY = 0.9
"""Share of a core from which a client may be what limits the load."""
LATE_S = 0.02
"""99 % of the requests must go out within so long of being due, unless the server let no connection be free."""
_MOST_CONNECTIONS = 64
_IDLE_S = 2.0
"""Of an open loop's connections: each is in turn again after so long; the service closes what is idle for 5 s."""
_KEPT = 5000
_START_S = 60.0


@dataclass(frozen=True)
class Seen:
    """What all clients have seen of a stretch of load.

    Attributes:
        started: Nanoseconds of the monotonic clock when the first client began.
        elapsed: Seconds from there to the last reply.
        begun: Seconds from ``started`` when the latency of each right reply began, float64 [n], ascending.
        latencies: Seconds of each, float64 [n].
        refused: Seconds of each reply of status 503, float64.
        unadvised: Those of them without ``Retry-After``.
        errors: What else was wrong → how many.
        late: Seconds by which requests went out late though a connection was free, float64 [sent].
        client_share: Share of a core that the busiest client used.
    """

    started: int
    elapsed: float
    begun: NDArray[np.float64]
    latencies: NDArray[np.float64]
    refused: NDArray[np.float64]
    unadvised: int
    errors: dict[str, int]
    late: NDArray[np.float64]
    client_share: float

    @property
    def replies(self) -> int:
        """Outcomes of all kinds."""
        return len(self.latencies) + len(self.refused) + sum(self.errors.values())

    @property
    def accepted_per_second(self) -> float:
        """Right replies per second."""
        return len(self.latencies) / self.elapsed

    def limits(self, what: str) -> list[str]:
        """Say whether the clients may be what limited this load."""
        found = []
        if self.client_share > CLIENT_BUSY:
            found.append(f"{what}: a client was busy {self.client_share:.0%} of the time and may have set the pace")
        if len(self.late) and (late := quantile(self.late, 0.99)) > LATE_S:
            found.append(
                f"{what}: the clients could not offer this rate, 1 % went out {late * 1e3:.0f} ms late or more"
            )
        return found

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, of the raw latencies every n-th so that some thousands are left."""
        step = -(-max(len(self.latencies), len(self.refused), 1) // _KEPT)
        return {
            "seconds": self.elapsed,
            "accepted": len(self.latencies),
            "refused": len(self.refused),
            "refused_without_retry_after": self.unadvised,
            "errors": self.errors,
            "accepted_per_second": self.accepted_per_second,
            "accepted_milliseconds": quantiles(self.latencies),
            "refused_milliseconds": quantiles(self.refused),
            "sent_late_p99_milliseconds": quantile(self.late, 0.99) * 1e3 if len(self.late) else None,
            "busiest_client": self.client_share,
            "every_nth": step,
            "begun_seconds": self.begun[::step].round(4).tolist(),
            "accepted_latencies_microseconds": microseconds(self.latencies[::step]),
            "refused_latencies_microseconds": microseconds(self.refused[::step]),
        }


def quantile(seconds: NDArray[np.float64], share: float) -> float:
    """Return a quantile; NaN, which meets no bar, where there is nothing."""
    return float(np.quantile(seconds, share)) if len(seconds) else float("nan")


def quantiles(seconds: NDArray[np.float64]) -> dict[str, float] | None:
    """Return what tables show of latencies, in milliseconds."""
    if not len(seconds):
        return None
    named = zip(("p50", "p95", "p99", "max"), np.quantile(seconds, (0.5, 0.95, 0.99, 1)), strict=True)
    return {name: round(float(value) * 1e3, 3) for name, value in named}


def connections_for(rate: float) -> int:
    """Return how many connections an open loop needs that nobody refuses."""
    return max(2, min(_MOST_CONNECTIONS, int(_IDLE_S * rate)))


def together(parts: Sequence[dict[str, Any]]) -> Seen:
    """Put together what the clients have written."""
    started = min(part["started"] for part in parts)

    def pooled(key: str) -> NDArray[np.float64]:
        return np.concatenate([np.array(part[key], dtype=np.float64) for part in parts]) * 1e-6

    begun = np.concatenate(
        [np.array(part["begun"], dtype=np.float64) * 1e-6 + (part["started"] - started) * 1e-9 for part in parts]
    )
    order = np.argsort(begun, kind="stable")
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(part["errors"])
    return Seen(
        started=started,
        elapsed=max(part["elapsed"] + (part["started"] - started) * 1e-9 for part in parts),
        begun=begun[order],
        latencies=pooled("latencies")[order],
        refused=pooled("refused"),
        unadvised=sum(part["unadvised"] for part in parts),
        errors=dict(errors),
        late=pooled("late"),
        client_share=max(part["client_share"] for part in parts),
    )


class Clients:
    """The parents' end of the client processes.

    Args:
        children: Running ``benchmarks.production.client``, ready.
        seed: Of what they draw.
    """

    def __init__(self, children: Sequence[subprocess.Popen[str]], seed: int) -> None:
        self._children = children
        self._seed = seed
        self._jobs = 0

    @property
    def pids(self) -> list[int]:
        """Which processes they are."""
        return [child.pid for child in self._children]

    def closed(self, concurrency: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Seen:
        """Load in a closed loop, by one client."""
        return self._run([Job(concurrency, seconds)], meanwhile, 1.0)

    def open(
        self,
        rate: float,
        seconds: float,
        meanwhile: Callable[[], None] = lambda: None,
        *,
        connections: int = 0,
        every: float = 1.0,
    ) -> Seen:
        """Load in an open loop, each client with its share.

        Args:
            rate: Requests per second of all together.
            seconds: How long requests are sent.
            meanwhile: Called at the beginning and every so often until all is over.
            connections: Of all together; by default as many as a service needs that refuses nobody.
            every: Seconds between two calls.

        Raises:
            ServerError: The server is gone.
        """
        count = len(self._children)
        each = -(-(connections or connections_for(rate)) // count)
        # Until then the connections are made and each has been used.
        at = time.perf_counter_ns() + int((0.1 + 0.005 * each) * 1e9)
        return self._run([Job(each, seconds, rate / count, at)] * count, meanwhile, every)

    def _run(self, jobs: Sequence[Job], meanwhile: Callable[[], None], every: float) -> Seen:
        self._jobs += 1
        waiting: dict[Any, int] = {}
        for number, (child, job) in enumerate(zip(self._children, jobs, strict=False)):
            if child.stdin is None or child.stdout is None:
                raise ServerError("a client has no input or output")
            seeded = Job(job.connections, job.seconds, job.rate, job.at, (self._seed, self._jobs, number))
            child.stdin.write(as_line(seeded))
            child.stdin.flush()
            waiting[child.stdout] = number
        parts = []
        due = time.monotonic()
        while waiting:
            if time.monotonic() >= due:
                meanwhile()
                due = max(due + every, time.monotonic())
            ready, _, _ = select.select(list(waiting), [], [], max(0.0, due - time.monotonic()))
            for output in ready:
                waiting.pop(output)
                parts.append(_read(output.readline()))
        return together(parts)


def _read(line: str) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(line) if line.strip() else {"failed": "a client has ended"}
    if "failed" in part:
        raise ServerError(part["failed"])
    return part


@contextmanager
def clients_of(
    server: Server, asked: Asked, k: int, count: int, seed: int, *, any_version: bool = False
) -> Iterator[Clients]:
    """Run client processes until the block ends.

    Args:
        server: That they ask; it holds the bundle under the name ``MODEL``.
        asked: The bundle.
        k: Items per reply.
        count: How many clients.
        seed: Of what they draw.
        any_version: Whether replies may name any version.

    Raises:
        ServerError: A client did not start.
    """
    version = "" if any_version else asked.manifest.version
    target = as_line(Target(server.host, server.port, MODEL, version, k, asked.users))
    command = [sys.executable, "-P", "-m", "benchmarks.production.client"]
    with ExitStack() as stack:
        children = []
        for _ in range(count):
            # In a group of its own, so that Ctrl-C reaches this process alone, which then ends them.
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
            )
            stack.callback(child.kill)
            children.append(child)
            if child.stdin is not None:
                child.stdin.write(target)
                child.stdin.flush()
        for child in children:
            if child.stdout is None or child.stdout.readline().strip() != READY:
                raise ServerError("a client process did not start")
        yield Clients(children, seed)
