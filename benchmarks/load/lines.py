"""What a load run says: a table, the bars, and the document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.engine import BATCH
from benchmarks.load.measure import BUNDLE, CLOSED, CONSTANT, OPEN, Load, Measured, Run
from benchmarks.statistics import Ratio, ratio_of_quantiles

THROUGHPUT, CPU, TAIL = 0.45, 1.4, 2.0
"""The bars: least throughput of ``/recommend`` as a share of the constant endpoint's; most CPU per request as a
multiple of constant reply and engine together; most p99 as a multiple of the constant endpoint's at the same rate."""
BARS_ARE_FOR = "15,000 to 25,000 items of dimension 128 and k = 10"
_BUSIEST = CLOSED[-1]
_HALF = next(load for load in OPEN if load.fraction == 0.5)
_CLIENT_BUSY = 0.9
"""Share of a core from which the client may be what limits a closed loop."""


_WORDS = {True: "met", False: "MISSED", None: "no bar for this bundle"}


@dataclass(frozen=True)
class Bar:
    """A bar and what was found.

    Attributes:
        name: For the document.
        text: What is compared.
        ratio: Interquartile mean over rounds of each round's own ratio, with its interval.
        limit: The bar.
        at_least: Whether the ratio may not be less, rather than not more.
        applies: Whether the bar was set for such a bundle.
    """

    name: str
    text: str
    ratio: Ratio
    limit: float
    at_least: bool = False
    applies: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the ratio is where it should be; None where no bar was set."""
        if not self.applies:
            return None
        return self.ratio.value >= self.limit if self.at_least else self.ratio.value <= self.limit

    def line(self) -> str:
        """Say it to people."""
        ratio = f"{self.ratio.value:.2f} [{self.ratio.low:.2f}, {self.ratio.high:.2f}]"
        wanted = f"wanted at {'least' if self.at_least else 'most'} {self.limit:.2f}"
        return f"{self.text}: {ratio}, {wanted}: {_WORDS[self.met]}"

    def document(self) -> dict[str, Any]:
        """Return the bar as JSON values."""
        return {"text": self.text, "ratio": self.ratio.document(), "limit": self.limit, "met": self.met}


def _bars_apply(run: Run) -> bool:
    manifest = run.asked[BUNDLE].manifest
    return 15_000 <= manifest.n_items <= 25_000 and manifest.dimension == 128 and run.options.k == 10


def _slices(run: Run, endpoint: str, load: Load) -> list[Measured]:
    """Return the slices of an endpoint at a load, in the order of the rounds."""
    found = [measured for measured in run.slices if (measured.endpoint, measured.load) == (endpoint, load)]
    return sorted(found, key=lambda measured: measured.round)


def _by_round(run: Run, endpoint: str, load: Load, figure: Callable[[Measured], float]) -> NDArray[np.float64]:
    return np.array([figure(measured) for measured in _slices(run, endpoint, load)])


def _cpu(measured: Measured) -> float:
    return measured.server_cpu / measured.seen.requests


def _p99(measured: Measured) -> float:
    return float(np.quantile(measured.seen.latencies, 0.99)) if len(measured.seen.latencies) else float("nan")


def _client_share(measured: Measured) -> float:
    return measured.seen.client_cpu / measured.seen.elapsed


def bars(run: Run) -> list[Bar]:
    """Return the bars of every bundle; of each round first the ratio, then their middle."""
    generator = np.random.default_rng(run.options.seed)

    def ratio(of: NDArray[np.float64], to: NDArray[np.float64]) -> Ratio:
        return ratio_of_quantiles(to[:, None], of[:, None], generator)

    found = []
    applies = _bars_apply(run)
    for name in run.asked:
        label = "/recommend" if name == BUNDLE else f"/recommend of {name}"
        suffix = "" if name == BUNDLE else f"_{name}"
        speed = ratio(*(_by_round(run, one, _BUSIEST, lambda m: m.throughput) for one in (name, CONSTANT)))
        cpu, constant_cpu = (_by_round(run, one, _BUSIEST, _cpu) for one in (name, CONSTANT))
        tail = ratio(*(_by_round(run, one, _HALF, _p99) for one in (name, CONSTANT)))
        at = f"{_BUSIEST.concurrency} at a time"
        found += [
            Bar(
                f"throughput{suffix}", f"{label}, {at}: throughput ÷ constant reply's", speed, THROUGHPUT, True, applies
            ),
            Bar(
                f"cpu{suffix}",
                f"{label}, {at}: CPU per request ÷ (constant reply + engine in batches of {BATCH})",
                ratio(cpu, constant_cpu + np.array(run.engine_cpu)),
                CPU,
                applies=applies,
            ),
            Bar(
                f"tail{suffix}",
                f"{label} at half of saturation: p99 ÷ constant reply's at this rate",
                tail,
                TAIL,
                applies=applies,
            ),
        ]
    return found


def errors(run: Run) -> list[str]:
    """Return what was wrong with replies, one line for each endpoint and load."""
    return [
        f"{measured.endpoint}, {measured.load.name}, round {measured.round}: {count} replies with {fault}"
        for measured in run.slices
        for fault, count in measured.seen.errors.items()
    ]


def busy_client(run: Run) -> list[str]:
    """Return the closed loops in which the client itself may be what limits the throughput."""
    return [
        f"{name}, {load.concurrency} at a time: the client was busy {share:.0%} of the time and may have set the pace"
        for name in (*run.asked, CONSTANT)
        for load in CLOSED
        if (share := float(np.median(_by_round(run, name, load, _client_share)))) > _CLIENT_BUSY
    ]


def _figures(run: Run, endpoint: str, load: Load) -> dict[str, Any]:
    """Summarise an endpoint at a load: latencies of all rounds together, the rest as medians of the rounds."""
    slices = _slices(run, endpoint, load)
    latencies = np.concatenate([measured.seen.latencies for measured in slices]) * 1e6
    late = np.concatenate([measured.seen.late for measured in slices]) * 1e6
    names = ("p50", "p95", "p99", "max")
    quantiles = np.quantile(latencies, (0.5, 0.95, 0.99, 1)) if len(latencies) else np.full(4, np.nan)
    return {
        "requests": sum(measured.seen.requests for measured in slices),
        "errors": sum(sum(measured.seen.errors.values()) for measured in slices),
        "offered_per_second": float(np.median([measured.rate for measured in slices])) or None,
        "replies_per_second": float(np.median([measured.throughput for measured in slices])),
        "latency_microseconds": dict(zip(names, quantiles.round(1).tolist(), strict=True)),
        "server_cpu_microseconds": float(np.median([_cpu(measured) for measured in slices])) * 1e6,
        "client_cpu_microseconds": float(np.median([m.seen.client_cpu / m.seen.requests for m in slices])) * 1e6,
        "client_share": float(np.median([_client_share(measured) for measured in slices])),
        "sent_late_p99_microseconds": round(float(np.quantile(late, 0.99)), 1) if len(late) else None,
        "server_resident_bytes": max(measured.resident for measured in slices),
    }


def report(run: Run) -> Iterator[str]:
    """Yield the run as lines for people."""
    manifest = run.asked[BUNDLE].manifest
    yield (
        f"{manifest.dataset.name}, {manifest.model} {manifest.variant}, {manifest.n_items} items of dimension "
        f"{manifest.dimension}, k {run.options.k}, replies of {run.reply_bytes} bytes; {run.options.rounds} rounds of "
        f"{run.options.seconds:g} s slices; one worker"
    )
    yield (
        f"{'load':<24}{'endpoint':<10}{'replies/s':>10}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9} ms"
        f"{'server CPU':>13}{'client CPU':>12} µs/request"
    )
    for load in (*CLOSED, *OPEN):
        for name in (*run.asked, CONSTANT):
            found = _figures(run, name, load)
            what = f"closed, {load.concurrency} at a time"
            if load.fraction:
                what = f"open, {load.fraction:.2f}: {found['offered_per_second']:.0f}/s"
            times = "".join(f"{value / 1e3:>9.2f}" for value in found["latency_microseconds"].values())
            yield (
                f"{what:<24}{name:<10}{found['replies_per_second']:>10.0f}{times}   "
                f"{found['server_cpu_microseconds']:>13.0f}{found['client_cpu_microseconds']:>12.0f}"
            )
    engine = float(np.median(run.engine_cpu)) * 1e6
    memory = {name: _figures(run, name, _BUSIEST)["server_resident_bytes"] / 1e6 for name in (BUNDLE, CONSTANT)}
    yield f"engine in batches of {BATCH}: {engine:.0f} µs of CPU per user"
    yield f"resident memory: service {memory[BUNDLE]:.0f} MB, constant reply {memory[CONSTANT]:.0f} MB"
    yield f"meanwhile others kept {run.other_cores:.1f} cores busy"
    yield from busy_client(run)
    yield from errors(run)
    yield f"bars, meant for {BARS_ARE_FOR}; medians of the rounds' middle half, 90 % intervals:"
    for bar in bars(run):
        yield f"  {bar.line()}"


def document(run: Run) -> dict[str, Any]:
    """Return the run as JSON values, raw samples among them; latencies in microseconds."""
    keys = {"version", "model", "variant", "preset", "dimension"}
    return {
        "dataset": run.asked[BUNDLE].manifest.dataset.name,
        "bundles": {
            name: {**one.manifest.model_dump(include=keys), "n_items": one.manifest.n_items}
            for name, one in run.asked.items()
        },
        "options": vars(run.options),
        "reply_bytes": run.reply_bytes,
        "other_cores_busy": round(run.other_cores, 3),
        "engine_batch": BATCH,
        "engine_cpu_microseconds_per_user": [value * 1e6 for value in run.engine_cpu],
        "bars": {bar.name: bar.document() for bar in bars(run)},
        "bars_are_for": BARS_ARE_FOR,
        "client_limits": busy_client(run),
        "errors": errors(run),
        "loads": {
            load.name: {name: _figures(run, name, load) for name in (*run.asked, CONSTANT)} for load in (*CLOSED, *OPEN)
        },
        "slices": [_slice_document(measured) for measured in run.slices],
    }


def _slice_document(measured: Measured) -> dict[str, Any]:
    return {
        "round": measured.round,
        "endpoint": measured.endpoint,
        "load": measured.load.name,
        "offered_per_second": measured.rate or None,
        "seconds": measured.seen.elapsed,
        "requests": measured.seen.requests,
        "server_cpu_seconds": measured.server_cpu,
        "client_cpu_seconds": measured.seen.client_cpu,
        "errors": measured.seen.errors,
        "latencies_microseconds": (measured.seen.latencies * 1e6).round().astype(int).tolist(),
    }
