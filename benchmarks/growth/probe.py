"""One process that loads a bundle and answers from it; see ``benchmarks.growth.measure``."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.probe import answer
from training.common.memory import peak_bytes, resident_bytes

if TYPE_CHECKING:
    from benchmarks.sampling import Call
    from service.engine import Engine

_MOST_USERS = 10_000


def probe(folder: str, ks: list[int], calls: int, seed: int) -> dict[str, Any]:
    """Load a bundle as the service does, and ask for one user at a time.

    Args:
        folder: The bundle.
        ks: Lengths of the answers; they are asked for in turns.
        calls: Timed calls for each.
        seed: Draws users and turns.

    Returns:
        ``memory_bytes`` with the imports alone, after loading and at most; ``load_seconds``; ``samples_microseconds``
        by length of the answer, and those of one pass over the item vectors where the index is exact.
    """
    import faiss
    import numpy as np

    from benchmarks.sampling import Contestant, sample
    from benchmarks.warm_up import warm_up
    from export.bundle import IDS, ITEMS, BundleReader
    from export.index_search import sample_users
    from service.engine import Engine
    from training.common.strings import StringTable

    faiss.omp_set_num_threads(1)
    memory = {"imports": resident_bytes()}
    started = time.perf_counter()
    engine = Engine.load(Path(folder), index_threads=1)
    load_seconds = time.perf_counter() - started
    gc.collect()
    memory |= {"loaded": resident_bytes(), "most": peak_bytes()}
    with BundleReader(Path(folder)) as reader:
        table = StringTable.from_arrays(reader.tensors(IDS), "users")
    users = [table[row] for row in sample_users(len(table), _MOST_USERS).tolist()]
    timed = {str(k): _call(engine, users, k) for k in ks}
    if engine.manifest.index.exact:
        items = np.load(Path(folder) / ITEMS, allow_pickle=False)
        timed["one pass"] = lambda _: items.max()
    generator = np.random.default_rng(seed)
    for call in timed.values():
        warm_up(call, len(users), 1, generator)
    contestants = {name: Contestant(call, calls) for name, call in timed.items()}
    times = sample(contestants, len(users), 1, generator)
    samples = {name: (seconds * 1e6).tolist() for name, seconds in times.items()}
    return {"memory_bytes": memory, "load_seconds": load_seconds, "samples_microseconds": samples}


def _call(engine: Engine, users: list[str], k: int) -> Call:
    from service.values import Request

    return lambda drawn: engine.recommend_many([Request(users[drawn[0]], k)])


def main() -> None:
    """Read the arguments of ``probe`` as JSON from the command line, and write its result, or what went wrong."""
    answer(probe, sys.argv[1])


if __name__ == "__main__":
    main()
