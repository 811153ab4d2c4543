"""How latency and memory grow: with the catalogue, the users, the length of an answer, and what a user has seen.

Every bundle is made up by ``benchmarks.synth_bundle`` and measured in a process of its own, so that its memory is that
of a service which holds this bundle and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.probe import run_probe
from benchmarks.synth_bundle import Options, write_bundle
from export import bundle
from training.common.errors import ConfigError

COMMAND = (sys.executable, "-P", "-m", "benchmarks.growth.probe")
SIZES = (7_000, 100_000, 1_000_000)
FULL_SIZES = (7_000, 18_000, 100_000, 300_000, 1_000_000, 10_000_000)
LARGEST_FLAT = 1_000_000
"""Above so many items the index is a quantised one."""
SMALLEST_LARGE = 100_000
"""From so many items on, ``full`` measures the quantised index beside the exact one."""
LARGE_INDEX = "IVF4096,SQ8"
BASE = Options(items=20_000, users=1_000)
"""What is varied, one thing at a time."""
K = 10
KS = (10, 100, 1_000)
SEEN = (0, 100, 1_000, 10_000)
USERS = (1_000, 10_000, 100_000)
FULL_USERS = (*USERS, 1_000_000)
AXES = {"items": "items", "users": "users", "k": "items per answer", "seen": "items that a user has seen"}
_TIMES_FLAT, _TIMES_QUANTISED = 5.0, 2.2
"""Memory that making and loading a bundle takes, as multiples of the item vectors: measured at 1 and 10 million."""


@dataclass(frozen=True)
class Point:
    """One place on one axis.

    Attributes:
        axis: Out of ``AXES``.
        options: The bundle.
        k: Items per answer.
    """

    axis: str
    options: Options
    k: int = K

    @property
    def value(self) -> int:
        """Where on the axis."""
        return self.k if self.axis == "k" else int(getattr(self.options, self.axis))


def points(sizes: Sequence[int], large_index: str = LARGE_INDEX, *, full: bool = False, seed: int = 0) -> list[Point]:
    """Return what is measured, axis by axis.

    Args:
        sizes: Items, ascending.
        large_index: The index of catalogues with more than ``LARGEST_FLAT`` items.
        full: Also this index beside the exact one, and more users.
        seed: Of the bundles.
    """
    base = replace(BASE, seed=seed)
    found = []
    for size in sizes:
        kinds = ["flat"] if size <= LARGEST_FLAT else [large_index]
        if full and SMALLEST_LARGE <= size <= LARGEST_FLAT:
            kinds.append(large_index)
        found += [Point("items", replace(base, items=size, seen=min(base.seen, size), index=kind)) for kind in kinds]
    found += [Point("users", replace(base, users=count)) for count in (FULL_USERS if full else USERS)]
    found += [Point("k", base, k) for k in KS]
    found += [Point("seen", replace(base, seen=count)) for count in SEEN]
    return found


def needed_bytes(options: Options) -> int:
    """Return about how much memory making and loading a bundle takes."""
    times = _TIMES_FLAT if options.index == "flat" else _TIMES_QUANTISED
    vectors = 4 * options.dimension * (times * options.items + 4 * options.users)
    return int(vectors + 8 * options.users * options.seen) + 2**28


def available_bytes() -> int | None:
    """Return how much memory is free or can be made so; None where the system does not tell."""
    information = Path("/proc/meminfo")
    if information.is_file():
        for line in information.read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def bundle_of(options: Options, work: Path, on_step: Callable[[str], None]) -> Path:
    """Return the folder of a bundle, made now unless it is there already from these very options."""
    folder = work / f"{options.name}-seen{options.seen}-{options.index.replace(',', '-')}"
    if bundle.is_bundle(folder):
        with bundle.BundleReader(folder) as reader:
            if reader.manifest.dataset.fingerprint == options.fingerprint:
                return folder
    write_bundle(options, folder, on_step)
    return folder


def measure(
    wanted: Sequence[Point],
    work: Path,
    *,
    calls: int,
    seed: int,
    on_step: Callable[[str], None] = lambda _: None,
    on_bundle: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Make and measure every bundle, each once, at all the lengths of answers that are wanted of it.

    Args:
        wanted: From ``points``.
        work: Where bundles are made, and found when they are there.
        calls: Timed calls of each point.
        seed: Draws users and turns.
        on_step: Told what happens.
        on_bundle: Called after each bundle.

    Returns:
        The document that ``--json`` writes, times in microseconds. What does not fit into memory is in ``skipped``.

    Raises:
        ConfigError: An answer is to be longer than the service gives.
        DvibError: A bundle cannot be made, or the measuring process failed.
    """
    for point in wanted:
        point.options.check()
        if point.k > point.options.items:
            raise ConfigError(f"an answer of {point.k} items from a catalogue of {point.options.items}")
    done: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for options in bundles_of(wanted):
        needed, available = needed_bytes(options), available_bytes()
        if available is not None and needed > available:
            reason = f"needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free"
            skipped.append({"bundle": options.name, "index": options.index, "reason": reason})
        else:
            mine = [point for point in wanted if point.options == options]
            folder = bundle_of(options, work, on_step)
            on_step(f"measuring {options.name}, {options.index}")
            done += _measured(mine, folder, calls, seed)
        on_bundle()
    order = list(AXES)
    done.sort(key=lambda entry: (order.index(entry["axis"]), entry["index"] != "flat", entry["value"]))
    return {"points": done, "skipped": skipped, "base": asdict(BASE), "calls": calls, "threads": 1}


def bundles_of(wanted: Sequence[Point]) -> list[Options]:
    """Return the bundles of some points, each once."""
    return list(dict.fromkeys(point.options for point in wanted))


def _measured(mine: Sequence[Point], folder: Path, calls: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the document of each point of one bundle."""
    ks = sorted({point.k for point in mine})
    arguments = {"folder": str(folder.absolute()), "ks": ks, "calls": calls, "seed": seed}
    result = run_probe([*COMMAND, json.dumps(arguments)], "the measured process")
    with bundle.BundleReader(folder) as reader:
        manifest = reader.manifest
    for point in mine:
        samples = result["samples_microseconds"]
        p50, p99 = np.quantile(samples[str(point.k)], (0.5, 0.99))
        passed = samples.get("one pass")
        yield {
            "axis": point.axis,
            "value": point.value,
            **asdict(point.options),
            "k": point.k,
            "factory": manifest.index.factory,
            "search": dict(manifest.index.search),
            "recall": manifest.index.recall and manifest.index.recall.model_dump(),
            "file_bytes": sum(entry.size for entry in manifest.files.values()),
            "memory_bytes": result["memory_bytes"],
            "load_seconds": result["load_seconds"],
            "microseconds": {"p50": round(float(p50), 2), "p99": round(float(p99), 2)},
            "one_pass_microseconds": None if passed is None else round(float(np.median(passed)), 2),
            "samples_microseconds": [round(value, 2) for value in samples[str(point.k)]],
        }


def report(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a measurement as lines for people."""
    base = document["base"]
    yield (
        f"one user per call, one thread, dimension {base['dimension']}; but for what is varied: {base['items']} items, "
        f"{base['users']} users, {base['seen']} seen, k {K}, flat index"
    )
    yield f"{'axis':<8}{'value':>11} {'index':<13}{'p50 ms':>9}{'p99 ms':>9}{'÷ pass':>8}{'memory MB':>11}{'load s':>8}"
    for point in document["points"]:
        times, passed = point["microseconds"], point["one_pass_microseconds"]
        ratio = "" if passed is None else f"{times['p50'] / passed:.2f}"
        yield (
            f"{point['axis']:<8}{point['value']:>11} {point['factory']:<13}{times['p50'] / 1000:>9.3f}"
            f"{times['p99'] / 1000:>9.3f}{ratio:>8}{point['memory_bytes']['loaded'] / 1e6:>11.0f}"
            f"{point['load_seconds']:>8.1f}"
        )
    for entry in document["skipped"]:
        yield f"skipped: {entry['bundle']}, {entry['index']}: {entry['reason']}"
