"""What a bundle costs before its first answer: seconds to load, seconds of the first call, memory, bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.arms import Arm
from benchmarks.latency.round import THREADS, open_session
from benchmarks.rounds import fresh_processes
from benchmarks.sampling import shuffled
from export.bundle import MODEL_ONNX, BundleReader
from export.serving import load_for_serving
from service.engine import Engine
from training.common.memory import resident_bytes

REPEATS = 5


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _open(folder: Path) -> tuple[Engine, str]:
    bundle = load_for_serving(folder)
    return Engine(bundle, index_threads=THREADS), bundle.users[0]


def load_once(folder: Path, k: int) -> dict[str, float]:
    """Load a bundle as the service does, in a process that has loaded none, and answer once.

    Returns:
        Seconds and bytes.
    """
    before = resident_bytes()
    (engine, user), load = _timed(lambda: _open(folder))
    _, first = _timed(lambda: engine.recommend(user, k))
    after = resident_bytes()
    with BundleReader(folder) as reader:
        graph = bytes(reader.read(MODEL_ONNX))
    opened, graph_load = _timed(lambda: open_session(graph, folded=True))
    _, graph_first = _timed(lambda: opened.run(["scores"], {"users": np.zeros(1, dtype=np.int64)}))
    return {
        "engine_load_s": load,
        "engine_first_answer_s": first,
        "engine_resident_bytes": after - before,
        "graph_load_s": graph_load,
        "graph_first_call_s": graph_first,
    }


def measure(arms: Sequence[Arm], k: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Load every arm's bundle several times, in changing order, each time in a process of its own.

    Args:
        arms: Those with a graph of their own, or a delay, are left out.
        k: Items of the first answer.
        seed: Draws the orders.

    Returns:
        Arm → figure → its values, one of each repetition.
    """
    generator = np.random.default_rng(seed)
    chosen = {arm.name: arm.folder for arm in arms if arm.graph is None and arm.role != "control"}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in chosen}
    with fresh_processes(__name__) as run:
        for _ in range(REPEATS):
            for name in shuffled(list(chosen), generator):
                for figure, value in run(load_once, chosen[name], k).items():
                    found[name].setdefault(figure, []).append(value)
    return found
