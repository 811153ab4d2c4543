"""A service under half of its load for long: does it make mistakes, and does its memory grow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundle_facts import bundle_facts, bundle_line
from benchmarks.load.process import Others
from benchmarks.load.questions import Asked
from benchmarks.load.tree import Memory, MemoryLog, processes, total, tree_memory
from benchmarks.production.clients import Seen, quantiles
from benchmarks.production.service import cores_of, find_saturation, service_and_clients
from benchmarks.production.trends import Slope, slope
from benchmarks.production.verdict import Bar, Verdict, faults_of

GROWTH = 1.0
"""The bar, chosen before any measurement: memory is flat where the slope's 90 % interval reaches down to 0, or where
the slope is below so many per cent of the resident memory per hour."""
RESOLUTION = 20.0
"""An interval that reaches further up than so many per cent per hour proves nothing: the run was too short."""
SHARE = 0.5
_HOUR = 3600.0


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        seconds: Of the soak.
        warm_up: Seconds of the same load before it, in which memory may settle.
        workers: Processes that answer.
        clients: Client processes.
        k: Items per reply.
        seed: Draws users, times of arrival and resamples.
    """

    seconds: float = 600.0
    warm_up: float = 30.0
    workers: int = 1
    clients: int = 1
    k: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: The bundle.
        options: How much was measured.
        saturation: Closed loop.
        soak: Open loop of half of that.
        rate: Requests per second that were offered.
        log: Resident memory of every process, about once a second.
        held: What the processes held before and after.
        other_cores: Cores that others kept busy meanwhile.
    """

    asked: Asked
    options: Options
    saturation: Seen
    soak: Seen
    rate: float
    log: MemoryLog
    held: dict[str, Memory]
    other_cores: float


def measure(bundle: Path, options: Options, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Load the service with half of what it can do and read its memory once a second.

    Args:
        bundle: The bundle, or its root of published versions.
        options: How much is measured.
        on_step: Told what begins, and then about once a second.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The service does not start, or is gone.
    """
    asked = Asked.read(bundle, options.k, options.seed)
    variables = {"DVIB_SERVE_WORKERS": str(options.workers)}
    service = service_and_clients(asked, options.k, options.seed, variables=variables, clients=options.clients)
    with service as (server, clients):
        saturation = find_saturation(clients, options.seconds, on_step)
        rate = SHARE * max(saturation.accepted_per_second, 2.0)
        if options.warm_up:
            clients.open(rate, options.warm_up, lambda: on_step("warming up"))
        others = Others(processes(os.getpid()))
        held = {"before": total([*tree_memory(server.pid).values()])}
        log = MemoryLog(server.pid)

        def meanwhile() -> None:
            on_step("soaking")
            log.read()

        soak = clients.open(rate, options.seconds, meanwhile, every=min(1.0, options.seconds / 20))
        held["after"] = total([*tree_memory(server.pid).values()])
        return Run(asked, options, saturation, soak, rate, log, held, cores_of(others))


def growth(run: Run) -> Slope:
    """Return how fast the whole tree's resident memory grows, in per cent of its mean per hour."""
    resident = run.log.bytes
    found = slope(run.log.seconds, resident, np.random.default_rng(run.options.seed))
    return found.times(_HOUR * 100 / float(resident.mean()))


def judge(run: Run) -> Verdict:
    """Say what the run says."""
    faults = faults_of(run.soak.errors, "soak") + faults_of(run.saturation.errors, "saturation")
    if len(run.soak.refused):
        faults.append(f"soak: {len(run.soak.refused)} requests with status 503 at half load")
    if not len(run.soak.latencies):
        faults.append("soak: nobody was answered")
    if not run.log.stable:
        faults.append("soak: processes of the service ended or began: their memory over time says nothing")
    found = growth(run)
    # An interval that reaches down to 0 is one of memory that may not grow at all.
    judged = 0.0 if found.low <= 0 else found.value
    detail = f"(slope {found.value:.2f} [{found.low:.2f}, {found.high:.2f}])"
    bar = Bar("growth", "growth of RSS that cannot be chance", judged, GROWTH, "%/h", detail)
    doubts = run.soak.limits("soak")
    if found.low <= 0 and found.high > RESOLUTION:
        doubts.append(f"the slope may be up to {found.high:.0f} %/h; use more --minutes")
    return Verdict([bar], faults, doubts)


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    options = run.options
    yield (
        f"{bundle_line(run.asked.manifest, options.k)}; {options.workers} workers; {options.seconds / 60:g} minutes at "
        f"{run.rate:.0f} requests/s, {SHARE:.0%} of {run.saturation.accepted_per_second:.0f}/s"
    )
    times = ", ".join(f"{name} {value:.2f} ms" for name, value in (quantiles(run.soak.latencies) or {}).items())
    yield f"{len(run.soak.latencies)} right replies: {times or 'none'}"
    for name, held in run.held.items():
        yield f"memory {name}: RSS {held.resident / 1e6:.1f} MB, PSS {held.proportional / 1e6:.1f} MB"
    readings = f"{len(run.log.times)} readings of {len(run.log.readings[-1])} processes"
    yield f"{readings}; meanwhile others kept {run.other_cores:.1f} cores busy"
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values."""
    return {
        "bundle": bundle_facts(run.asked.manifest),
        "options": vars(run.options),
        "offered_per_second": run.rate,
        "saturation_per_second": run.saturation.accepted_per_second,
        "verdict": verdict.document(),
        "growth_percent_per_hour": growth(run).document(),
        "soak": run.soak.document(),
        "memory": {name: held._asdict() for name, held in run.held.items()},
        "resident_bytes": run.log.document(),
        "other_cores_busy": None if isnan(run.other_cores) else round(run.other_cores, 3),
    }
