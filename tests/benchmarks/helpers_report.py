"""Small documents of every benchmark that the report reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.verdict import Comparison, Role, Verdict
from benchmarks.statistics import Quantiles, ratio_of_quantiles

Document = dict[str, Any]

MARGIN = 0.02
ROLES: dict[str, Role] = {
    "baseline again": "same",
    "baseline + delay": "control",
    "DVIB constant": "measured",
    "other seed": "shown",
    "un-stripped DVIB": "control",
}
# Arm → what its times are multiplied with.
EQUAL = {"baseline again": 1.0, "baseline + delay": 1.06, "DVIB constant": 1.0, "other seed": 1.0}
FAR = {"un-stripped DVIB": 60.0}
ENVIRONMENT = {
    "cpu": "a | CPU",
    "cores": 2,
    "usable_cores": 2,
    "memory_bytes": 8 * 2**30,
    "load_average_1min": 0.5,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "versions": {"numpy": "2.4.6", "torch": None},
    "thread_variables": {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": None},
}


LEVELS = {"graph_1": 1.2e-5, "engine_1": 9e-5}
"""Level → seconds of a call."""


def latency(
    factors: dict[str, float], *, spread: dict[str, float] | None = None, seconds: dict[str, float] = LEVELS
) -> Document:
    """Return what ``dvib-bench latency`` would write; ``spread`` widens an arm's interval."""
    generator = np.random.default_rng(0)
    levels: Document = {}
    comparisons: list[Comparison] = []
    for name, base in seconds.items():
        times = base * (1 + generator.exponential(0.02, size=(8, 40)))
        samples = {"baseline": times}
        for arm, factor in factors.items():
            wobble = np.exp((spread or {}).get(arm, 0.004) * np.linspace(-1, 1, 8))[:, None]
            samples[arm] = times * factor * wobble
            samples[arm][np.arange(8), times.argmax(axis=1)] *= 1.05  # only the tail
        ratios = {arm: ratio_of_quantiles(times, samples[arm], generator) for arm in factors}
        tails = {arm: ratio_of_quantiles(times, samples[arm], generator, quantile=0.99) for arm in factors}
        found = [Comparison(name, arm, ROLES[arm], ratio, MARGIN) for arm, ratio in ratios.items()]
        comparisons += found
        levels[name] = {
            "description": f"level {name}",
            "kind": "graph",
            "users_per_call": 1,
            "margin": MARGIN,
            "delays": {"baseline + delay": 0.05},
            "rounds": 8,
            "microseconds": {arm: Quantiles.of(values).document() for arm, values in samples.items()},
            "ratio_of_medians": {arm: ratio.document() for arm, ratio in ratios.items()},
            "ratio_of_p99": {arm: ratio.document() for arm, ratio in tails.items()},
            "findings": {entry.arm: entry.finding for entry in found},
            "samples_microseconds": {arm: (values * 1e6).tolist() for arm, values in samples.items()},
        }
    arms = {
        arm: {
            "role": role,
            "delay": 0.05 if arm == "baseline + delay" else 0.0,
            "version": f"version of {arm}",
            "model": "vbpr",
            "variant": "constant" if role == "measured" else "none",
            "preset": "tuned",
            "dimension": 16,
            "n_items": 1234,
            "index": "Flat",
            "bytes": {"model.onnx": 1_500_000, "items.npy": 250_000},
        }
        for arm, role in {"baseline": "baseline", **{arm: ROLES[arm] for arm in factors}}.items()
    }
    return {
        "benchmark": "latency",
        "command": "dvib-bench latency --baseline b --dvib d",
        "arms": arms,
        "options": {"calls": 40, "k": 10, "seed": 7, "provider": "CPU", "inject": 0.0, "confidence": 0.9},
        "verdict": Verdict.of(comparisons).document(),
        "levels": levels,
        "loading": {"baseline": {"engine_load_s": [0.25, 0.5, 0.75], "engine_resident_bytes": [None, None, None]}},
        "environment": ENVIRONMENT,
    }


def ratio(value: float) -> Document:
    return {"value": value, "low": value - 0.125, "high": value + 0.125, "confidence": 0.9}


def stages() -> Document:
    times = {"engine": 64.5, "request": 250.25, "empty call": 3.5, "one pass": 32.0}
    return {
        "benchmark": "stages",
        "bundle": {
            "version": "version of baseline",
            "model": "vbpr",
            "variant": "none",
            "dimension": 128,
            "n_items": 7050,
            "dataset": "a data set",
            "index": "Flat",
        },
        "options": {"rounds": 3, "calls": 50, "users_per_call": 1, "k": 10, "seed": 0},
        "floors": {"ratio": ratio(1.75), "bar": 1.6, "holds": False},
        "stages": {
            name: {
                "what": "floor: it" if name in {"empty call", "one pass"} else "what it is",
                "microseconds": {"p50": value, "p95": value, "p99": 10 * value},
            }
            for name, value in times.items()
        },
        "remainders_microseconds": {"queue and thread": 17.75},
        "environment": ENVIRONMENT,
    }


def load() -> Document:
    def figures(rate: float | None, milliseconds: float) -> Document:
        return {
            "requests": 100,
            "offered_per_second": rate,
            "replies_per_second": rate or 4321.0,
            "latency_microseconds": {
                "p50": milliseconds * 1e3,
                "p95": milliseconds * 2e3,
                "p99": milliseconds * 3e3,
                "max": milliseconds * 4e3,
            },
            "server_cpu_microseconds": 222.0,
            "client_share": 0.1,
            "server_resident_bytes": 150_000_000,
        }

    loads = {"closed_32": None, "open_0.50": 1000.0, "open_0.90": 1900.0}
    bundle = {"version": "v", "model": "vbpr", "variant": "none", "dimension": 128, "n_items": 18357}
    return {
        "benchmark": "load",
        "dataset": "sports",
        "bundles": {"bundle": bundle},
        "options": {"rounds": 4, "seconds": 0.5, "k": 10, "seed": 3},
        "reply_bytes": 836,
        "other_cores_busy": 0.25,
        "engine_batch": 32,
        "engine_cpu_microseconds_per_user": [50.0, 60.0, 70.0],
        "bars": {
            "throughput": {"text": "throughput it is", "ratio": ratio(0.5), "limit": 0.45, "met": True},
            "cpu": {"text": "processor time", "ratio": ratio(1.5), "limit": 1.4, "met": False},
        },
        "bars_are_for": "18,000 items",
        "client_limits": ["the client was busy"],
        "errors": ["bundle, open_0.90, round 1: 2 replies with status 503"],
        "loads": {
            name: {"bundle": figures(rate, 1.25), "constant": figures(rate, 0.25)} for name, rate in loads.items()
        },
        "environment": ENVIRONMENT,
    }


def growth() -> Document:
    points = [
        {
            "axis": axis,
            "value": value,
            "items": value if axis == "items" else 20_000,
            "factory": "Flat",
            "seed": 5,
            "recall": {"k": 10, "value": 0.9912, "users": 500} if value == 7000 else None,
            "file_bytes": 3_500_000,
            "memory_bytes": {"loaded": 123_000_000},
            "load_seconds": 0.75,
            "microseconds": {"p50": 81.0, "p99": 99.5},
            "one_pass_microseconds": 54.0,
        }
        for axis, values in (("items", (7000, 100_000)), ("users", (1000,)), ("k", (10, 100)), ("seen", (0, 100)))
        for value in values
    ]
    skipped = [{"bundle": "synthetic-10m", "index": "Flat", "reason": "too large"}]
    base = {"items": 20_000, "users": 1000, "seen": 20, "dimension": 128}
    return {
        "benchmark": "growth",
        "points": points,
        "skipped": skipped,
        "base": base,
        "calls": 50,
        "environment": ENVIRONMENT,
    }


def all_users() -> Document:
    return {
        "benchmark": "all-users",
        "command": "dvib-bench all-users --shape sports",
        "dataset": "sports",
        "users": 35598,
        "items": 18357,
        "dimension": 128,
        "seen": 218409,
        "k": 50,
        "rounds": 5,
        "threads": 2,
        "seed": 0,
        "seconds": {"product": 4.25, "command": 12.5, "ranking": 11.0, "loading": 0.5},
        "ratios": {name: ratio(value) for name, value in (("command", 2.75), ("ranking", 2.5), ("loading", 0.25))},
        "bar": {"max_ratio": 3.5, "code": 4},
        "environment": ENVIRONMENT,
    }


def peers() -> Document:
    arms = {"dvib": (80.5, 1.0, 0), "numpy": (40.25, 0.5, 0), "cornac": (322.0, 4.0, 3)}
    return {
        "benchmark": "peers",
        "bundle": {**stages()["bundle"], "n_items": 5000},
        "options": {"rounds": 3, "calls": 50, "k": 10, "compared": 500, "seed": 9},
        "versions": {"cornac": "2.3.0"},
        "not_installed": {"implicit": "implicit scipy"},
        "arms": {
            name: {
                "what": f"how {name} does it",
                "microseconds": {"p50": median, "p95": median, "p99": 2 * median},
                "ratio_to_ours": ratio(value),
                "differing_answers": differing,
            }
            for name, (median, value, differing) in arms.items()
        },
        "environment": ENVIRONMENT,
    }


EVERYTHING: dict[str, Callable[[], Document]] = {
    "latency": lambda: latency(EQUAL | FAR),
    "stages": stages,
    "load": load,
    "growth": growth,
    "peers": peers,
    "all-users": all_users,
}


def put(folder: Path, *documents: Document) -> Path:
    folder.mkdir(exist_ok=True)
    for document in documents:
        (folder / f"{document['benchmark']}.json").write_text(json.dumps(document), "utf-8")
    return folder
