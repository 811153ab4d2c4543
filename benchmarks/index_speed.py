"""Recall against queries per second of each kind of index, beside an exact search in the same run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.index_data import DIMENSION, IndexData, description, draw
from export.index_layout import Layout, read_layout
from export.index_search import ItemIndex, Truth, search_threads
from export.index_tuning import factory_of, flat_index, make_index
from export.manifest import IndexEntry, Recall
from training.common.errors import ConfigError, nearest

K = 10
ROUNDS = 3
FLAT_QUERIES = 12
"""Exact searches per round: few, because each takes long and all take the same."""
FLAT_BATCH = 64
KINDS = ("fp16", "int8", "ivf", "ivf-int8", "ivfpq", "hnsw", "hnsw-int8")
MAX_BUILD_SECONDS = 600.0
_PROBES = (8, 32, 64, 128, 256, 512, 1024)
_BREADTHS = (16, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Bar:
    """What one kind must reach on the queries near items, at the largest size.

    Attributes:
        recall: Recall@10.
        speedup: Queries per second ÷ those of an exact search, one query per call and one thread.
    """

    recall: float = 0.99
    speedup: float = 5.0


def factory_string(kind: str, n_items: int) -> str:
    """Return what FAISS builds for a kind.

    Raises:
        ConfigError: There is no such kind.
    """
    lists = factory_of("ivf", n_items, DIMENSION).removesuffix("Flat")
    known = {
        "fp16": "SQfp16",
        "int8": "SQ8",
        "ivf": f"{lists}Flat",
        "ivf-int8": f"{lists}SQ8",
        "ivfpq": factory_of("ivfpq", n_items, DIMENSION),
        "hnsw": factory_of("hnsw", n_items, DIMENSION),
        "hnsw-int8": "HNSW32,SQ8",
    }
    if kind not in known:
        raise ConfigError(f"--kind: no kind '{kind}'{nearest(kind, known)}")
    return known[kind]


def grid(kind: str, layout: Layout, n_items: int) -> list[dict[str, int]]:
    """Return the search parameters of a kind that are measured, from fast to thorough."""
    over = {"ivfpq": (10, 40), "fp16": (1,), "ivf": (1,), "hnsw": (1,)}.get(kind, (3,))
    if layout.nlist:
        steps = [{"nprobe": probes} for probes in _PROBES if probes < layout.nlist] or [{"nprobe": layout.nlist}]
    elif layout.kind == "hnsw":
        steps = [{"efSearch": breadth} for breadth in _BREADTHS if breadth < n_items]
    else:
        steps = [{}]
    return [{"overfetch": factor, **step} for step in steps for factor in over]


class Baseline:
    """Exact search over the items, whose answers are the truth.

    Args:
        data: Items and queries.

    Attributes:
        data: As given.
        truth: Kind of query → what the best items are.
    """

    def __init__(self, data: IndexData) -> None:
        self.data = data
        self._index = flat_index(data.items).index
        self.truth = {name: Truth(data.items, queries, k=K) for name, queries in data.queries.items()}

    def alone(self, queries: NDArray[np.float32]) -> float:
        """Return queries per second, one query per call."""
        start = time.perf_counter()
        for query in queries[:FLAT_QUERIES]:
            self._index.search(query[None], K)
        return min(FLAT_QUERIES, len(queries)) / (time.perf_counter() - start)

    def batch(self, queries: NDArray[np.float32]) -> float:
        """Return queries per second of one call as matrix products, the fastest way there is to search exactly."""
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            start = time.perf_counter()
            self._index.search(queries[:FLAT_BATCH], K)
            return min(FLAT_BATCH, len(queries)) / (time.perf_counter() - start)
        finally:
            faiss.cvar.distance_compute_blas_threshold = before


def answer(index: ItemIndex, items: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the best of the candidates after exact scoring, int64 [10 or fewer]: what a request does."""
    rows = index.candidates(query, K)
    return rows[np.argsort(-(items[rows] @ query), kind="stable")[:K]]


def _answer_batch(index: ItemIndex, items: NDArray[np.float32], queries: NDArray[np.float32], count: int) -> None:
    for query, rows in zip(queries, index.index.search(queries, count)[1], strict=True):
        np.argsort(-(items[rows] @ query), kind="stable")[:K]


def measure_point(index: ItemIndex, baseline: Baseline, name: str) -> dict[str, Any]:
    """Measure recall and speed of one index with one set of search parameters, exact searches in between.

    Args:
        index: Set to search in this way.
        baseline: The exact search.
        name: Kind of query.

    Returns:
        JSON values: recall, and median queries per second and ratio over the rounds.
    """
    items, queries, truth = baseline.data.items, baseline.data.queries[name], baseline.truth[name]
    count = min(len(items), K * index.entry.search["overfetch"])
    found = 0
    samples: dict[str, list[float]] = {key: [] for key in ("flat", "qps", "flat_batch", "batch_qps")}
    for part in np.array_split(np.arange(len(queries)), ROUNDS):
        samples["flat"].append(baseline.alone(queries[part]))
        start = time.perf_counter()
        answers = [answer(index, items, query) for query in queries[part]]
        samples["qps"].append(len(part) / (time.perf_counter() - start))
        found += sum(truth.found(query, rows) for query, rows in zip(part.tolist(), answers, strict=True))
        samples["flat_batch"].append(baseline.batch(queries))
        start = time.perf_counter()
        _answer_batch(index, items, queries[part], count)
        samples["batch_qps"].append(len(part) / (time.perf_counter() - start))
    pairs = {"ratio": ("qps", "flat"), "batch_ratio": ("batch_qps", "flat_batch")}
    return {
        "recall": truth.share(found),
        **{key: statistics.median(values) for key, values in samples.items()},
        **{
            key: statistics.median(ours / theirs for ours, theirs in zip(samples[a], samples[b], strict=True))
            for key, (a, b) in pairs.items()
        },
        "samples": samples,
    }


def measure_kind(kind: str, baseline: Baseline, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Build one kind and measure it over its grid, with one thread.

    Args:
        kind: Out of ``KINDS``.
        baseline: The exact search over the same items.
        on_step: Told what happens.

    Returns:
        JSON values.
    """
    items = baseline.data.items
    factory = factory_string(kind, len(items))
    on_step(f"{kind}: building {factory}")
    start = time.perf_counter()
    index = make_index(factory, items, threads=os.cpu_count())
    seconds = time.perf_counter() - start
    stored = faiss.serialize_index(index)
    size = stored.nbytes
    layout = read_layout(stored.data, *items.shape)
    del stored
    points = []
    for search in grid(kind, layout, len(items)):
        unknown = Recall(k=K, value=0, users=1)
        fields = {"kind": layout.kind, "factory": layout.factory, "exact": False, "search": search, "recall": unknown}
        opened = ItemIndex(index, IndexEntry.model_validate(fields), layout)
        point = {name: measure_point(opened, baseline, name) for name in baseline.data.queries}
        points.append({"search": search, **point})
        on_step(f"{kind} {search}: recall {point['near']['recall']:.4f}, {point['near']['ratio']:.1f} × flat")
    return {"kind": kind, "factory": factory, "build_seconds": seconds, "bytes": size, "points": points}


def measure(
    n_items: int, n_queries: int, kinds: Sequence[str], bar: Bar, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure all kinds over one catalogue.

    Args:
        n_items: Number of items.
        n_queries: Queries of each kind.
        kinds: Out of ``KINDS``.
        bar: What is wanted.
        on_step: Told what happens.

    Returns:
        JSON values.

    Raises:
        ConfigError: There is no kind of a name.
    """
    for kind in kinds:
        factory_string(kind, n_items)
    on_step(f"{n_items} items: drawing vectors")
    baseline = Baseline(draw(n_items, n_queries))
    with search_threads(1):
        results = [measure_kind(kind, baseline, on_step) for kind in kinds]
    points = [point["near"] for result in results for point in result["points"]]
    flat = {key: statistics.median(point[key] for point in points) for key in ("flat", "flat_batch")}
    return {
        "items": n_items,
        "queries": n_queries,
        "generator": description(),
        "build_threads": os.cpu_count(),
        "flat": {"qps": flat["flat"], "batch_qps": flat["flat_batch"]},
        "kinds": results,
        "best": best_point(results, bar),
    }


def best_point(results: Sequence[dict[str, Any]], bar: Bar) -> dict[str, Any] | None:
    """Return the fastest way of searching that has the recall on near queries and whose index is built in time."""
    good = [
        {"kind": result["kind"], "build_seconds": result["build_seconds"], "search": point["search"], **point["near"]}
        for result in results
        for point in result["points"]
        if point["near"]["recall"] >= bar.recall and result["build_seconds"] < MAX_BUILD_SECONDS
    ]
    for point in good:
        del point["samples"]
    return max(good, key=lambda point: point["ratio"], default=None)


def holds(run: dict[str, Any], bar: Bar) -> bool:
    """Tell whether a run reaches the bar."""
    return run["best"] is not None and run["best"]["ratio"] >= bar.speedup


def report(run: dict[str, Any], bar: Bar) -> list[str]:
    """Return a run in lines for people."""
    flat = run["flat"]
    lines = [
        f"{run['items']} items, {run['queries']} queries of each kind, recall@{K}, one thread",
        f"flat: {flat['qps']:.0f} queries/s one per call, {flat['batch_qps']:.0f} in a batch as matrix products",
        f"{'kind':<10} {'build s':>7} {'search':<32} {'recall near':>11} {'mixed':>6} {'queries/s':>9} "
        f"{'× flat':>6} {'batch':>6} {'× flat':>6}",
    ]
    for result in run["kinds"]:
        for point in result["points"]:
            near = point["near"]
            search = ", ".join(f"{name} {value}" for name, value in point["search"].items())
            lines.append(
                f"{result['kind']:<10} {result['build_seconds']:7.0f} {search:<32} {near['recall']:11.4f} "
                f"{point['mixed']['recall']:6.3f} {near['qps']:9.0f} {near['ratio']:6.1f} {near['batch_qps']:6.0f} "
                f"{near['batch_ratio']:6.1f}"
            )
    best = run["best"]
    found = "none" if best is None else f"{best['kind']}, recall {best['recall']:.4f}, {best['ratio']:.1f} × flat"
    lines.append(f"fastest with recall {bar.recall} or more, built within {MAX_BUILD_SECONDS:.0f} s: {found}")
    return lines
