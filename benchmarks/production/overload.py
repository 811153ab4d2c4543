"""A service that is asked for more than it can do: who is refused, how fast, and how long do the others wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from benchmarks.bundle_facts import bundle_facts, bundle_line
from benchmarks.load.process import Others
from benchmarks.load.questions import Asked
from benchmarks.load.tree import Memory, MemoryLog, processes, total, tree_memory
from benchmarks.production.clients import Clients, Seen, quantile, quantiles
from benchmarks.production.service import cores_of, find_saturation, service_and_clients
from benchmarks.production.tail import tail_bar, too_few
from benchmarks.production.verdict import Bar, Verdict, faults_of

REFUSED_S = 0.05
"""The bars: a refusal takes no longer; 99 % of the accepted no longer than so many times of what they take unloaded;
memory after it is no more than so many times of what it was. PSS is shown and not judged: it moves with every other
program that begins or ends and shares a library."""
TAIL, MEMORY = 3.0, 1.05
LOSS, CALM_REFUSED = 2.0, 0.01
"""Bars without which the others could be met by doing nothing: overloaded, the service still does at least half of its
work; unloaded, it refuses next to nobody."""
UNLOADED = 0.1
"""Rate of the unloaded stretch, as a share of the saturation."""
_SPARE, _SPARE_S, _MOST = 64, 0.25, 2048
"""Connections of the overload beside those that the service lets in: enough for refusals of a quarter of a second."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        seconds: Of the overload; the unloaded stretches before and after it take as long and half as long.
        factor: Rate of the overload, as a multiple of the saturation.
        max_in_flight: Limit of the service: requests in work; more are refused.
        max_queue: Limit of the service: requests waiting for the model.
        max_batch: Limit of the service: requests that one call answers.
        clients: Client processes.
        k: Items per reply.
        seed: Draws users and times of arrival.
    """

    seconds: float = 60.0
    factor: float = 3.0
    max_in_flight: int = 4
    max_queue: int = 4
    max_batch: int = 2
    clients: int = 2
    k: int = 10
    seed: int = 0

    def variables(self) -> dict[str, str]:
        """Return the service's settings."""
        limits = {"MAX_IN_FLIGHT": self.max_in_flight, "MAX_QUEUE": self.max_queue, "MAX_BATCH": self.max_batch}
        return {f"DVIB_SERVE_{name}": str(value) for name, value in limits.items()} | {"DVIB_SERVE_WORKERS": "1"}


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: The bundle.
        options: How much was measured.
        saturation: Closed loop of as many as the service lets in.
        unloaded: Open loop at a low rate, before.
        overload: Open loop at a multiple of the saturation.
        recovered: Open loop at the low rate, after.
        rates: Requests per second that were offered of the open ones.
        held: What the processes held before, halfway through and after the overload.
        log: Resident memory during the overload.
        other_cores: Cores that others kept busy meanwhile.
    """

    asked: Asked
    options: Options
    saturation: Seen
    unloaded: Seen
    overload: Seen
    recovered: Seen
    rates: dict[str, float]
    held: dict[str, Memory]
    log: MemoryLog
    other_cores: float


def measure(bundle: Path, options: Options, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Find the saturation, measure the unloaded service, overload it, and measure it again.

    Args:
        bundle: The bundle, or its root of published versions.
        options: How much is measured.
        on_step: Told what begins, and then about once a second.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The service does not start, or is gone.
    """
    asked = Asked.read(bundle, options.k, options.seed)
    service = service_and_clients(
        asked, options.k, options.seed, variables=options.variables(), clients=options.clients
    )
    with service as (server, clients):
        others = Others(processes(os.getpid()))
        saturation = find_saturation(clients, options.seconds, on_step, options.max_in_flight)
        most = max(saturation.accepted_per_second, 1.0)
        calm, offered = UNLOADED * most, options.factor * most
        unloaded = clients.open(calm, options.seconds, lambda: on_step("unloaded"))
        held = {"before": total([*tree_memory(server.pid).values()])}
        log = MemoryLog(server.pid)
        overload = _overload(clients, offered, options, log, held, on_step)
        recovered = clients.open(calm, options.seconds / 2, lambda: on_step("unloaded again"))
        held["after"] = total([*tree_memory(server.pid).values()])
        rates = {"unloaded": calm, "overload": offered, "recovered": calm}
        return Run(asked, options, saturation, unloaded, overload, recovered, rates, held, log, cores_of(others))


def _overload(
    clients: Clients,
    rate: float,
    options: Options,
    log: MemoryLog,
    held: dict[str, Memory],
    on_step: Callable[[str], None],
) -> Seen:
    def meanwhile() -> None:
        on_step("overloaded")
        log.read()
        if "during" not in held and log.seconds[-1] >= options.seconds / 2:
            held["during"] = total([*tree_memory(log.root).values()])

    connections = options.max_in_flight + min(_MOST, max(_SPARE, round(rate * _SPARE_S)))
    every = min(1.0, options.seconds / 10)
    return clients.open(rate, options.seconds, meanwhile, connections=connections, every=every)


def judge(run: Run) -> Verdict:
    """Say what the run says."""
    refused, before, after = run.overload.refused, run.held["before"], run.held["after"]
    accepted = run.overload.accepted_per_second or float("nan")
    calm_refused = len(run.unloaded.refused) / max(run.unloaded.replies, 1)
    bars = [
        Bar("refused_p99", "p99 of the refusals", quantile(refused, 0.99) * 1e3, REFUSED_S * 1e3, "ms"),
        Bar("refused_max", "slowest refusal", quantile(refused, 1.0) * 1e3, REFUSED_S * 1e3, "ms"),
        tail_bar("p99 of the accepted ÷ unloaded", [run.unloaded], [run.overload], TAIL, run.options.seed),
        Bar("resident", "RSS after ÷ before", after.resident / before.resident, MEMORY, "×"),
        Bar(
            "goodput", "saturation ÷ accepted when overloaded", run.saturation.accepted_per_second / accepted, LOSS, "×"
        ),
        Bar("calm", "refused when unloaded", calm_refused * 100, CALM_REFUSED * 100, "%"),
    ]
    stretches = _stretches(run)
    faults = [fault for name, seen in stretches.items() for fault in faults_of(seen.errors, name)]
    if run.overload.unadvised:
        faults.append(f"overload: {run.overload.unadvised} refusals without Retry-After")
    if not len(refused) and not run.overload.errors:
        faults.append("overload: nobody was refused: the service lets everybody wait")
    return Verdict(bars, faults, _doubts(run, stretches))


def _doubts(run: Run, stretches: dict[str, Seen]) -> list[str]:
    doubts = [doubt for name, seen in stretches.items() for doubt in seen.limits(name)]
    doubts += too_few([run.unloaded], "unloaded")
    if doubts and any("client" in doubt for doubt in doubts):
        doubts.append("choose a bundle of more items, so that fewer requests saturate the service, or more --clients")
    return doubts


def _stretches(run: Run) -> dict[str, Seen]:
    return {
        "saturation": run.saturation,
        "unloaded": run.unloaded,
        "overload": run.overload,
        "recovered": run.recovered,
    }


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    options = run.options
    yield (
        f"{bundle_line(run.asked.manifest, options.k)}; one worker, at most {options.max_in_flight} in flight, "
        f"{options.max_queue} waiting, {options.max_batch} in a call; {options.clients} clients"
    )
    yield f"{'stretch':<12}{'offered/s':>10}{'right/s':>10}{'503/s':>10}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9} ms"
    for name, seen in _stretches(run).items():
        offered = f"{run.rates[name]:.0f}" if name in run.rates else "closed"
        times = quantiles(seen.latencies) or {}
        shown = "".join(f"{value:>9.2f}" for value in times.values())
        refused = len(seen.refused) / seen.elapsed
        yield f"{name:<12}{offered:>10}{seen.accepted_per_second:>10.0f}{refused:>10.0f}{shown}"
    refusals = ", ".join(f"{name} {value:.2f} ms" for name, value in (quantiles(run.overload.refused) or {}).items())
    yield f"refusals: {refusals or 'none'}"
    for name, held in run.held.items():
        yield f"memory {name}: RSS {held.resident / 1e6:.1f} MB, PSS {held.proportional / 1e6:.1f} MB"
    yield f"most resident during the overload: {run.log.bytes.max() / 1e6:.1f} MB"
    yield f"meanwhile others kept {run.other_cores:.1f} cores busy"
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values."""
    return {
        "bundle": bundle_facts(run.asked.manifest),
        "options": vars(run.options),
        "offered_per_second": run.rates,
        "verdict": verdict.document(),
        "stretches": {name: seen.document() for name, seen in _stretches(run).items()},
        "memory": {name: held._asdict() for name, held in run.held.items()},
        "resident_bytes": run.log.document(),
        "other_cores_busy": None if isnan(run.other_cores) else round(run.other_cores, 3),
    }
