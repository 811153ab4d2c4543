"""Small FAISS indexes for tests, made with faiss alone."""

from __future__ import annotations

import re
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from export.manifest import IndexEntry, Recall

SERVED = (
    "Flat",
    "SQ8",
    "SQ4",
    "SQfp16",
    "SQbf16",
    "PQ4x4",
    "PQ2x8",
    "PQ4x4fs",
    "IVF6,Flat",
    "IVF6,SQ8",
    "IVF6,SQfp16",
    "IVF6,PQ4x4",
    "IVF6,PQ8x4fs",
    "IVF200,Flat",
    "IVF16_HNSW4,SQ4",
    "HNSW4,Flat",
    "HNSW4,SQ8",
    "HNSW4,SQfp16",
)
"""Factory strings as the walk spells them, one of each way to store codes, lists and graphs."""


def vectors(count: int, dimension: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def faiss_index(factory: str, items: NDArray[np.float32], metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    """Return a filled index, trained badly and quickly; faiss does not warn on stderr of few training vectors."""
    faiss.omp_set_num_threads(1)
    index: Any = faiss.index_factory(items.shape[1], factory, metric)
    parts: tuple[Any, ...] = (index, getattr(index, "pq", None))
    for part in parts:
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid, part.cp.niter = 1, 2
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
    index.train(items)
    index.add(items)
    return index


def serialised(index: Any) -> bytes:
    return bytes(faiss.serialize_index(index).tobytes())


def entry_of(factory: str, **search: int) -> IndexEntry:
    """Return a manifest's entry, found from the factory string alone; search parameters may be given."""
    lists = re.match(r"IVF(\d+)", factory)
    kind: Any = "flat" if factory == "Flat" else "hnsw" if factory.startswith("HNSW") else "custom"
    wanted = {} if kind == "flat" else {"overfetch": 2}
    if lists:
        kind = "ivfpq" if ",PQ" in factory else "ivf"
        wanted["nprobe"] = min(3, int(lists[1]))
    if kind == "hnsw":
        wanted["efSearch"] = 12
    recall = None if kind == "flat" else Recall(k=10, value=0.5, users=1)
    return IndexEntry.model_validate(
        {"kind": kind, "factory": factory, "exact": kind == "flat", "search": wanted | search, "recall": recall}
    )
