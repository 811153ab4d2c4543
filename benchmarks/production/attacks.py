"""A service under attack: does everybody else wait longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundle_facts import bundle_facts, bundle_line
from benchmarks.http_client import Server, ServerError
from benchmarks.load.process import Others
from benchmarks.load.questions import Asked
from benchmarks.load.tree import processes
from benchmarks.production.attacker import READY, Job
from benchmarks.production.clients import Clients, Seen, quantiles
from benchmarks.production.hostile import LIMITS
from benchmarks.production.service import cores_of, find_saturation, service_and_clients
from benchmarks.production.tail import tail_bar, together, too_few
from benchmarks.production.verdict import Verdict, faults_of

TAIL = 2.0
"""The bar, chosen before any measurement: p99 of the others' requests under attack, as a multiple of p99 without."""
SHARE = 0.25
"""Of the saturation: what the others ask for."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: Each has a calm stretch and one under attack, in an order that is drawn.
        seconds: Of each stretch.
        attacks: That begin per second.
        idle: Connections that are there under attack and say nothing.
        k: Items per reply.
        seed: Draws users, times of arrival, attacks and resamples.
    """

    rounds: int = 4
    seconds: float = 10.0
    attacks: float = 20.0
    idle: int = 200
    k: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that was measured.

    Attributes:
        asked: The bundle.
        options: How much was measured.
        rate: Requests per second of the others.
        calm: What the others have seen without attacks, a stretch each.
        attacked: The same under attack.
        kinds: How many kinds of attack there are.
        attacks: How many there were.
        wrong: What the service did wrong with attacks → how many.
        attacker_share: Share of a core that the attacker used.
        survived: Whether all processes of the service are still there.
        other_cores: Cores that others kept busy meanwhile.
    """

    asked: Asked
    options: Options
    rate: float
    calm: list[Seen]
    attacked: list[Seen]
    kinds: int
    attacks: int
    wrong: dict[str, int]
    attacker_share: float
    survived: bool
    other_cores: float


class Attacker:
    """The parent's end of an attacking process.

    Args:
        child: Runs ``benchmarks.production.attacker``.

    Attributes:
        kinds: How many kinds of attack it knows.
    """

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.pid = child.pid
        self.kinds = int(self._read()[READY])

    def start(self, job: Job) -> None:
        """Let it attack."""
        if self._child.stdin is None:
            raise ServerError("the attacker has no input")
        self._child.stdin.write(json.dumps(job._asdict()) + "\n")
        self._child.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait until its job is done, and return what came of it."""
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._child.stdout.readline() if self._child.stdout else ""
        if not line:
            raise ServerError("the attacker has ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def attacker_of(server: Server) -> Iterator[Attacker]:
    """Run an attacker until the block ends.

    Raises:
        ServerError: It did not start.
    """
    command = [sys.executable, "-P", "-m", "benchmarks.production.attacker", str(server.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as child:
        try:
            yield Attacker(child)
        finally:
            child.kill()


def measure(bundle: Path, options: Options, on_step: Callable[[str], None] = lambda _: None) -> Run:
    """Ask the service for a quarter of what it can do, now calmly and now while somebody attacks it.

    Args:
        bundle: The bundle, or its root of published versions.
        options: How much is measured.
        on_step: Told what begins, and then about once a second.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The service does not start, or is gone.
    """
    asked = Asked.read(bundle, options.k, options.seed)
    generator = np.random.default_rng(options.seed)
    with (
        service_and_clients(asked, options.k, options.seed, variables=LIMITS) as (server, clients),
        attacker_of(server) as attacker,
    ):
        saturation = find_saturation(clients, options.seconds, on_step)
        rate = SHARE * max(saturation.accepted_per_second, 4.0)
        before, others = processes(server.pid), Others(processes(os.getpid()))
        stretches: dict[str, list[Seen]] = {"calm": [], "under attack": []}
        came: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            for name in generator.permutation(list(stretches)).tolist():
                seen, attacks = _stretch(name, clients, attacker, rate, options, generator, on_step)
                stretches[name].append(seen)
                came += attacks
        wrong: Counter[str] = Counter()
        for one in came:
            wrong.update(one["wrong"])
        calm, attacked = stretches.values()
        return Run(
            asked=asked,
            options=options,
            rate=rate,
            calm=calm,
            attacked=attacked,
            kinds=attacker.kinds,
            attacks=sum(one["attacks"] for one in came),
            wrong=dict(wrong),
            attacker_share=sum(one["cpu_seconds"] for one in came) / (options.rounds * options.seconds),
            survived=processes(server.pid) == before,
            other_cores=cores_of(others),
        )


def _stretch(
    name: str,
    clients: Clients,
    attacker: Attacker,
    rate: float,
    options: Options,
    generator: np.random.Generator,
    on_step: Callable[[str], None],
) -> tuple[Seen, list[dict[str, Any]]]:
    calm = name == "calm"
    if not calm:
        attacker.start(Job(options.seconds, options.attacks, options.idle, int(generator.integers(2**31))))
    seen = clients.open(rate, options.seconds, lambda: on_step(name))
    return seen, [] if calm else [attacker.end()]


def judge(run: Run) -> Verdict:
    """Say what the run says."""
    bar = tail_bar("p99 under attack ÷ calm", run.calm, run.attacked, TAIL, run.options.seed)
    faults = [f"an attack was let through: {count} × {found}" for found, count in run.wrong.items()]
    doubts = []
    for name, stretches in _named(run).items():
        for seen in stretches:
            faults += faults_of(seen.errors, name)
            doubts += seen.limits(name)
            if len(seen.refused):
                faults.append(f"{name}: {len(seen.refused)} requests with status 503")
    if not run.survived:
        faults.append("processes of the service ended or began")
    if run.attacks < run.kinds:
        doubts.append(f"{run.attacks} attacks of {run.kinds} kinds; use more --seconds or more --attacks")
    return Verdict([bar], faults, doubts + too_few(run.calm, "calm"))


def _named(run: Run) -> dict[str, list[Seen]]:
    return {"calm": run.calm, "under attack": run.attacked}


def report(run: Run, verdict: Verdict) -> Iterator[str]:
    """Yield the run as lines for people."""
    options = run.options
    yield (
        f"{bundle_line(run.asked.manifest, options.k)}; one worker; {options.rounds} rounds of {options.seconds:g} s "
        f"calm and {options.seconds:g} s under attack, {run.rate:.0f} requests/s"
    )
    yield (
        f"{run.attacks} attacks of {run.kinds} kinds, {options.attacks:g} per second, and {options.idle} connections "
        f"that say nothing; the attacker used {run.attacker_share:.0%} of a core"
    )
    yield f"{'stretch':<14}{'right':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9} ms"
    for name, stretches in _named(run).items():
        latencies = together(stretches)[1]
        shown = "".join(f"{value:>9.2f}" for value in (quantiles(latencies) or {}).values())
        yield f"{name:<14}{len(latencies):>9}{shown}"
    yield f"meanwhile others kept {run.other_cores:.1f} cores busy"
    yield from verdict.lines()


def document(run: Run, verdict: Verdict) -> dict[str, Any]:
    """Return the run as JSON values."""
    return {
        "bundle": bundle_facts(run.asked.manifest),
        "options": vars(run.options),
        "offered_per_second": run.rate,
        "verdict": verdict.document(),
        "attacks": {"kinds": run.kinds, "count": run.attacks, "wrong": run.wrong},
        "attacker_share": run.attacker_share,
        "stretches": {name: [seen.document() for seen in stretches] for name, stretches in _named(run).items()},
        "other_cores_busy": None if isnan(run.other_cores) else round(run.other_cores, 3),
    }
