"""Making FAISS indexes over item vectors, and tuning how they are searched. Needs no torch."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from export.index_layout import KNOWN, Layout, read_layout
from export.index_search import ItemIndex, Truth, search_threads
from export.manifest import IndexEntry, Recall
from training.common.errors import BundleError, ExportError

TARGET_RECALL = 0.99
"""What the search parameters are tuned for where the caller names no recall."""
FLAT_BUDGET = 0.010
"""Seconds that one exact search for one user may take before ``auto`` looks for a faster index: a few times what the
rest of a request takes."""

_SMALL = 20_000
_WHERE = re.compile(r"^Error in .*? at \S+:\d+: (Error: )?")
_SCREENED = 1000
_TIMED = 64
_ROUNDS = 3
_OVERFETCH = {"Flat": (1,), "SQ8": (1, 2, 4), "SQfp16": (1, 2), "SQbf16": (1, 2, 4)}
_MOST_TIMES_FLAT = 8
_OVERFETCH_COARSE = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class IndexChoice:
    """Which index a bundle gets.

    Attributes:
        name: flat, hnsw, ivf, ivfpq, auto or a FAISS factory string.
        min_recall: Recall that the index must reach; None writes it with whatever it reaches.
        flat_budget: Seconds per query within which ``auto`` stays with flat.
    """

    name: str = "flat"
    min_recall: float | None = None
    flat_budget: float = FLAT_BUDGET

    @property
    def target(self) -> float:
        """The recall that search parameters are tuned for."""
        return TARGET_RECALL if self.min_recall is None else self.min_recall


def flat_index(items: NDArray[np.float32]) -> ItemIndex:
    """Return the exact index over items, float32 [I, D]."""
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return ItemIndex(index, IndexEntry(factory="Flat", exact=True), Layout("Flat", 0.0))


def factory_of(name: str, n_items: int, dimension: int) -> str:
    """Return the factory string behind a short name; any other name is one already.

    Args:
        name: hnsw, ivf, ivfpq or a factory string.
        n_items: I. The number of lists is the power of two nearest to four times its root, with 39 items per list or
            more, which FAISS wants to train with.
        dimension: D. A part of the product quantiser has one dimension of 4 bits.
    """
    lists = 2 ** max(0, min(round(np.log2(4 * n_items**0.5)), int(np.log2(max(n_items / 39, 1)))))
    named = {"flat": "Flat", "hnsw": "HNSW32,Flat", "ivf": f"IVF{lists},Flat", "ivfpq": f"IVF{lists},PQ{dimension}x4fs"}
    return named.get(name, name)


def make_index(factory: str, items: NDArray[np.float32], threads: int | None = None) -> faiss.Index:
    """Train an index and fill it.

    Args:
        factory: FAISS factory string.
        items: float32 [I, D].
        threads: Of the work. If left out, one for graphs, over items or over lists' centres, whose edges otherwise
            depend on which thread is first, and for small catalogues, which have no work for more; all for the rest.

    Raises:
        ExportError: FAISS cannot make it, or the service would not read it.
    """
    try:
        index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        _check_servable(index, factory)
        _quieten(index)
        if threads is None:
            alone = _holds_graph(index) or len(items) < _SMALL
            threads = 1 if alone else faiss.omp_get_max_threads()
        with search_threads(threads):
            index.train(items)
            index.add(items)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = _WHERE.sub("", str(error).strip().replace("\n", " ")) or type(error).__name__
        raise ExportError(f"--index {factory}: FAISS cannot make it for {items.shape} vectors: {reason}") from error
    return index


def _holds_graph(index: faiss.Index) -> bool:
    coarse = faiss.downcast_index(index.quantizer) if isinstance(index, faiss.IndexIVF) else index
    return isinstance(coarse, faiss.IndexHNSW)


def _check_servable(index: faiss.Index, factory: str) -> None:
    """Refuse before the long work what would be refused after it."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ExportError(f"--index {factory} has no inner product; known: {KNOWN}")
    served = (
        faiss.IndexFlat,
        faiss.IndexScalarQuantizer,
        faiss.IndexPQ,
        faiss.IndexPQFastScan,
        faiss.IndexIVFFlat,
        faiss.IndexIVFScalarQuantizer,
        faiss.IndexIVFPQ,
        faiss.IndexIVFPQFastScan,
        faiss.IndexHNSWFlat,
        faiss.IndexHNSWSQ,
    )
    if type(index) not in {*served, faiss.IndexFlatIP}:
        raise ExportError(f"--index {factory} makes a {type(index).__name__}, which is not served; known: {KNOWN}")


def _quieten(index: faiss.Index) -> None:
    """Bound the training, and stop FAISS from writing to stderr that a small catalogue has few points per list."""
    if isinstance(index, faiss.IndexPQ):
        cast("Any", index).do_polysemous_training = False  # long, and for a way of searching that is not used
    for clustered in (index, getattr(index, "pq", None)):
        parameters = getattr(clustered, "cp", None)
        if parameters is not None:
            parameters.min_points_per_centroid = 1
            parameters.max_points_per_centroid = 64 if clustered is index else 256


def forget_search(index: faiss.Index) -> None:
    """Put back what searching has set: the file depends on the vectors alone, the manifest says how to search."""
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = 1
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = 16


def layout_of(index: faiss.Index, factory: str) -> Layout:
    """Walk an index of our own making, as any reader will.

    Raises:
        ExportError: A reader would refuse it.
    """
    try:
        return read_layout(faiss.serialize_index(index).data, index.ntotal, index.d)
    except BundleError as error:
        raise ExportError(f"--index {factory}: {error}") from error


def build_tuned(items: NDArray[np.float32], truth: Truth, choice: IndexChoice) -> ItemIndex:
    """Build one index and tune its search.

    Args:
        items: float32 [I, D].
        truth: Of real users.
        choice: A short name or factory string, and the recall.

    Returns:
        The index with the cheapest parameters that reach the recall, else with those that come nearest.

    Raises:
        ExportError: See `build_index`.
    """
    factory = factory_of(choice.name, *items.shape)
    index = make_index(factory, items)
    layout = layout_of(index, factory)
    if layout.kind == "flat":
        return flat_index(items)
    screened = truth.some(_SCREENED)
    slack = 0.01 if len(screened.vectors) < len(truth.vectors) else 0.0
    best: tuple[float, ItemIndex] | None = None
    for search in search_grid(layout, len(items), items.shape[1], truth.k):
        tried = _measured(index, layout, search, screened)
        value = _value(tried)
        if value >= choice.target - slack:
            tried = _measured(index, layout, search, truth)
            if _value(tried) >= choice.target:
                return tried
        if best is None or value > best[0]:
            best = value, tried
    assert best is not None  # noqa: S101 (the grid is never empty)
    return _measured(index, layout, dict(best[1].entry.search), truth)  # type: ignore[arg-type]


def _value(measured: ItemIndex) -> float:
    return measured.entry.recall.value if measured.entry.recall else 0.0


def _measured(index: faiss.Index, layout: Layout, search: dict[str, int], truth: Truth) -> ItemIndex:
    unknown = Recall(k=truth.k, value=0, users=len(truth.vectors))
    fields = {"kind": layout.kind, "factory": layout.factory, "exact": False, "search": search}
    entry = IndexEntry.model_validate({**fields, "recall": unknown})
    found = ItemIndex(index, entry, layout).recall(truth)
    return ItemIndex(index, entry.model_copy(update={"recall": found}), layout)


def search_grid(layout: Layout, n_items: int, dimension: int, k: int) -> list[dict[str, int]]:
    """Return search parameters worth trying, cheapest first.

    The cost of a search is the bytes of codes and of candidates' vectors that it reads: unlike time, that is the same
    on every machine and in every run. What costs several times as much as an exact search is of no use, and trying it
    could take hours.

    Args:
        layout: Of the index.
        n_items: I.
        dimension: D.
        k: Items wanted.
    """
    code = _code_bytes(layout, dimension)
    overfetch = _OVERFETCH.get(layout.factory.split(",")[-1], _OVERFETCH_COARSE)
    name, last, step = "", 1, 0.0
    if layout.nlist:
        name, last, step = "nprobe", layout.nlist, n_items / layout.nlist * code
    elif layout.kind == "hnsw":
        edges = 2 * int(layout.factory.removeprefix("HNSW").split(",")[0])
        name, last, step = "efSearch", n_items, edges * code
    grid = []
    for breadth in _geometric(last):
        for factor in overfetch:
            cost = breadth * step + factor * k * 4 * dimension
            grid.append((cost, {"overfetch": factor, **({name: breadth} if name else {})}))
    grid.sort(key=lambda pair: (pair[0], *pair[1].values()))
    affordable = [pair for pair in grid if pair[0] <= _MOST_TIMES_FLAT * n_items * 4 * dimension]
    return [search for _, search in affordable or grid[:1]]


def _code_bytes(layout: Layout, dimension: int) -> float:
    payload = layout.factory.split(",")[-1]
    if payload.startswith("PQ"):
        parts, bits = payload.removeprefix("PQ").removesuffix("fs").split("x")
        return int(parts) * int(bits) / 8
    return {"Flat": 4.0, "SQ8": 1.0, "SQ4": 0.5}.get(payload, 2.0) * dimension


def _geometric(last: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, … and ``last``."""
    found = {last}
    for power in range(last.bit_length()):
        found |= {size for size in (2**power, 3 * 2**power // 2) if size <= last}
    return sorted(found)


def build_fastest(items: NDArray[np.float32], truth: Truth, choice: IndexChoice) -> ItemIndex:
    """Stay with flat while it is fast enough; else build the others and time those that reach the recall."""
    best = flat_index(items)
    if seconds_per_query([best], items, truth)[0] <= choice.flat_budget:
        return best
    lists = factory_of("ivf", *items.shape).removesuffix("Flat")
    for name in ("hnsw", "HNSW32,SQ8", "ivf", f"{lists}SQ8", "ivfpq"):
        best = _faster(best, name, items, truth, choice)
    return best


def _faster(best: ItemIndex, name: str, items: NDArray[np.float32], truth: Truth, choice: IndexChoice) -> ItemIndex:
    """Return the best so far or a new index; the slower is free when the next is built, for each holds a catalogue."""
    tried = build_tuned(items, truth, IndexChoice(name, choice.min_recall))
    if _value(tried) < choice.target:
        return best
    ours, theirs = seconds_per_query([best, tried], items, truth)
    return tried if theirs < ours else best


def seconds_per_query(
    candidates: list[ItemIndex],
    items: NDArray[np.float32],
    truth: Truth,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time searches with exact re-scoring, one user at a time, by one thread, the indexes in turns.

    Args:
        candidates: Indexes over the same items.
        items: float32 [I, D].
        truth: Of real users.
        clock: Tells the time.

    Returns:
        Median seconds per query of each.
    """
    timed = truth.some(_TIMED)
    taken: list[list[float]] = [[] for _ in candidates]
    with search_threads(1):
        for _ in range(_ROUNDS):
            for times, candidate in zip(taken, candidates, strict=True):
                for vector, seen in zip(timed.vectors, timed.seen, strict=True):
                    start = clock()
                    _ = items[candidate.candidates(vector, truth.k, seen)] @ vector
                    times.append(clock() - start)
    return [statistics.median(times) for times in taken]
