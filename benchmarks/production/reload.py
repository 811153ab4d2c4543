"""What a reload costs those who are asking meanwhile: failed requests, latency, and memory for two versions at once."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bundle_facts import bundle_facts, bundle_line
from benchmarks.http_client import Connection, Server, ServerError
from benchmarks.load.questions import Asked
from benchmarks.load.tree import NOTHING, Memory, processes, total, tree_memory
from benchmarks.production.clients import MODEL, Seen, quantiles
from benchmarks.production.service import find_saturation, service_and_clients
from benchmarks.production.verdict import Verdict, faults_of
from export.bundle import MANIFEST, content_version
from export.manifest import Manifest
from export.publish import publish

SHARE = 0.5
WATCH_S = 0.2
"""How often the service looks which version is published; its default is 1 s."""
PATIENCE_S = 120.0
"""A version that does not answer for so long after it was published will not any more."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        times: Reloads.
        every: Seconds from one to the next, at the least.
        workers: Processes that answer.
        clients: Client processes.
        k: Items per reply.
        seed: Draws users and times of arrival.
    """

    times: int = 20
    every: float = 8.0
    workers: int = 1
    clients: int = 1
    k: int = 10
    seed: int = 0


@dataclass
class Reload:
    """One reload; times in seconds of the monotonic clock.

    Attributes:
        begun: When the version was being published: its files are hashed, by us.
        published: When the pointer had moved.
        served: When the first new connection was answered by it.
        settled: When the processes of the old version were gone.
        held: What all processes held when the new version was first seen.
    """

    begun: float
    published: float = 0.0
    served: float = 0.0
    settled: float = 0.0
    held: Memory = NOTHING


@dataclass
class _Course:
    """Publishes one version after the other while clients load the service.

    Attributes:
        root: Where versions are published.
        copies: What is published in turn: folder → version.
        server: The service.
        connect: Opens a connection and returns the version that answers it.
        options: How much is measured.
        on_step: Told what happens.
        reloads: Those so far, the last of which may be under way.
        failed: What went wrong with our own requests meanwhile.
    """

    root: Path
    copies: list[tuple[Path, str]]
    server: Server
    connect: Callable[[], str]
    options: Options
    on_step: Callable[[str], None]
    reloads: list[Reload] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _before: set[int] = field(default_factory=set)

    def step(self) -> None:
        """Go on, if there is something to be done."""
        now = time.monotonic()
        last = self.reloads[-1] if self.reloads else None
        if last is None or last.settled:
            due = self.options.every * (len(self.reloads) + 1)
            if len(self.reloads) < self.options.times and now - self.started >= due:
                self._publish()
        elif not last.served:
            if self._look() == self._version:
                last.served, last.held = time.monotonic(), total([*tree_memory(self.server.pid).values()])
            elif now - last.published > PATIENCE_S:
                raise ServerError(
                    f"the service does not serve version {self._version}, {PATIENCE_S:.0f} s after it came"
                )
        elif len(processes(self.server.pid)) <= len(self._before):
            last.settled = now

    @property
    def _version(self) -> str:
        return self.copies[len(self.reloads) % 2][1]

    def _look(self) -> str:
        try:
            return self.connect()
        except ServerError as error:
            self.failed.append(str(error))
            return ""

    def _publish(self) -> None:
        self._before = set(processes(self.server.pid))
        self.reloads.append(Reload(time.monotonic()))
        self.on_step(f"reload {len(self.reloads)}")
        publish(self.copies[len(self.reloads) % 2][0], self.root)
        self.reloads[-1].published = time.monotonic()


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: The bundle.
        options: How much was measured.
        rate: Requests per second that were offered.
        seen: What the clients have seen of all of it.
        reloads: In order; the last may not be over.
        calm: What the processes held before the first.
        failed: What went wrong with our own requests, each over a new connection, which asked for the version.
    """

    asked: Asked
    options: Options
    rate: float
    seen: Seen
    reloads: list[Reload]
    calm: Memory
    failed: list[str]

    @property
    def over(self) -> list[Reload]:
        """Reloads that were over before the load was."""
        return [one for one in self.reloads if one.settled]

    def parts(self) -> dict[str, NDArray[np.float64]]:
        """Return latencies of requests that were due while all was calm, a version was published, and reloaded."""
        begun = self.seen.begun + self.seen.started * 1e-9
        publishing, reloading = (np.zeros(len(begun), dtype=np.bool_) for _ in range(2))
        for one in self.reloads:
            publishing |= (begun >= one.begun) & (begun < one.published)
            reloading |= (begun >= one.published) & (begun < (one.settled or np.inf))
        latencies = self.seen.latencies
        return {
            "calm": latencies[~publishing & ~reloading],
            "publishing": latencies[publishing],
            "reloading": latencies[reloading],
        }


def measure(bundle: Path, options: Options, work: Path | None, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Publish two versions in turn below a root of our own while the service is at half of its load.

    Args:
        bundle: The bundle, or its root of published versions.
        options: How much is measured.
        work: Where there is space for four copies of the bundle; by default the system's place for temporary files.
        on_step: Told what happens.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The service does not start, is gone, or does not take a version over.
    """
    asked = Asked.read(bundle, options.k, options.seed)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work, prefix="dvib-reload-")))
        on_step("copying the bundle")
        copies = [_copy(asked.folder, place / f"copy-{number}", number) for number in range(2)]
        root = place / "root"
        publish(copies[0][0], root)
        stack.callback(_writable, root)
        variables = {"DVIB_SERVE_WORKERS": str(options.workers), "DVIB_SERVE_WATCH_S": str(WATCH_S)}
        server, clients = stack.enter_context(
            service_and_clients(asked, options.k, options.seed, variables=variables, clients=options.clients, root=root)
        )
        saturation = find_saturation(clients, options.every, on_step)
        calm = total([*tree_memory(server.pid).values()])

        def version_now() -> str:
            with closing(Connection(server.host, server.port, MODEL, options.k)) as connection:
                reply: dict[str, Any] = json.loads(connection.post(connection.target(asked.users[0])))
                return str(reply["version"])

        course = _Course(root, copies, server, version_now, options, on_step)
        rate = SHARE * max(saturation.accepted_per_second, 2.0)
        seconds = options.every * (options.times + 2)
        course.started = time.monotonic()
        seen = clients.open(rate, seconds, course.step, every=_LOOK_S)
        return Run(asked, options, rate, seen, course.reloads, calm, course.failed)


def _copy(bundle: Path, folder: Path, number: int) -> tuple[Path, str]:
    """Copy a bundle under a version of its own: what it answers is the same, what it says of its origin is not."""
    shutil.copytree(bundle, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    document = json.loads((folder / MANIFEST).read_text("utf-8"))
    document["provenance"]["copy"] = number
    version = content_version(Manifest.model_validate(document))
    (folder / MANIFEST).write_text(json.dumps(document | {"version": version}), "utf-8")
    return folder, version


def _writable(root: Path) -> None:
    """Published versions are read-only; what is ours alone must go away again."""
    for folder in root.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o755)


def judge(run: Run) -> Verdict:
    """Say what the run says. A failed request is a fault; what a reload costs beside that is told and not judged."""
    faults = faults_of(run.seen.errors, "during the reloads")
    faults += [f"during the reloads: over a new connection: {reason}" for reason in run.failed]
    if len(run.seen.refused):
        faults.append(f"during the reloads: {len(run.seen.refused)} requests with status 503 at half load")
    if not len(run.seen.latencies):
        faults.append("during the reloads: nobody was answered")
    doubts = run.seen.limits("reloads")
    if len(run.over) < run.options.times:
        doubts.append(f"{len(run.over)} of {run.options.times} reloads were over when the load ended; use more --every")
    return Verdict([], faults, doubts)


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    options = run.options
    yield (
        f"{bundle_line(run.asked.manifest, options.k)}; {options.workers} workers; {len(run.over)} reloads at "
        f"{run.rate:.0f} requests/s"
    )
    yield f"{'requests due':<14}{'replies':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9} ms"
    for name, latencies in run.parts().items():
        shown = "".join(f"{value:>9.2f}" for value in (quantiles(latencies) or {}).values())
        yield f"{name:<14}{len(latencies):>9}{shown}"
    if run.over:
        waits = np.array([(one.served - one.published, one.settled - one.served) for one in run.over])
        (until, after), (until_most, after_most) = np.median(waits, axis=0), waits.max(axis=0)
        yield f"published until served: median {until:.2f} s, longest {until_most:.2f} s"
        yield f"served until the old processes were gone: median {after:.2f} s, longest {after_most:.2f} s"
        most = max(one.held.proportional for one in run.over)
        yield f"PSS of all processes: calm {run.calm.proportional / 1e6:.1f} MB, with two versions {most / 1e6:.1f} MB"
    yield f"{sum(run.seen.errors.values())} failed requests of {run.seen.replies}"
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values; times of reloads in seconds from the start of the load."""
    start = run.seen.started * 1e-9
    return {
        "bundle": bundle_facts(run.asked.manifest),
        "options": asdict(run.options),
        "offered_per_second": run.rate,
        "verdict": verdict.document(),
        "milliseconds": {name: quantiles(latencies) for name, latencies in run.parts().items()},
        "calm": run.calm._asdict(),
        "reloads": [
            {name: round(getattr(one, name) - start, 4) for name in ("begun", "published", "served", "settled")}
            | {"held": one.held._asdict()}
            for one in run.over
        ],
        "load": run.seen.document(),
    }
