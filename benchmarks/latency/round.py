"""One round of the latency benchmark in a process of its own: open every arm anew, time them in turns, answer.

A process forked from one that has only imported the libraries starts from the same heap every time, and a bundle's
place in it depends on the order of opening alone. That order changes from round to round. Within one long-lived process
two equal arms stay up to 15 % apart, whichever way the dice fell when it started.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.arms import Arm
from benchmarks.sampling import Call, Contestant, sample
from benchmarks.warm_up import warm_up
from export.bundle import MODEL_ONNX, BundleReader
from export.parity import session
from export.runtime import CPU, GRAPH_ERRORS, onnxruntime
from export.serving import SeenItems, ServingBundle, load_for_serving
from service.engine import Engine
from service.values import Request
from training.common.errors import BundleError, ConfigError

THREADS = 1
"""Of ONNX Runtime and of FAISS, in every arm; the server's defaults are the same."""
SLOW_SHARE = 10
"""An arm that runs everything at each call gets this many times fewer calls."""

_WARM_UP_USERS, _WARM_UP_BATCH = 2048, 32

Kind = Literal["graph", "unfolded", "engine"]


@dataclass(frozen=True)
class Round:
    """What one process is asked for.

    Attributes:
        kind: The graph as ONNX Runtime folds it, the graph with folding switched off, or what a request runs.
        arms: In the order of opening.
        calls: Users per call → timed calls of each arm.
        k: Items per answer.
        provider: ONNX Runtime's execution provider; graphs only.
        seed: Draws users and turns.
    """

    kind: Kind
    arms: Sequence[Arm]
    calls: dict[int, int]
    k: int
    provider: str
    seed: Sequence[int]


Times = dict[int, dict[str, NDArray[np.float64]]]
"""Users per call → arm → seconds, float64 [calls]."""


def play(task: Round) -> Times:
    """Open all arms and time them at every number of users per call."""
    faiss.omp_set_num_threads(THREADS)
    opened, n_users = _open_engines(task) if task.kind == "engine" else _open_graphs(task)
    generator = np.random.default_rng(task.seed)
    if task.kind == "engine":
        _warm_up(task, opened, n_users)
    gc.collect()
    gc.disable()
    try:
        return {
            users: sample(
                {
                    arm.name: Contestant(
                        opened[arm.name], max(1, calls // SLOW_SHARE) if arm.slow else calls, arm.delay
                    )
                    for arm in task.arms
                    # Requests in a batch share the un-stripped graph's fixed work: there it is no control any more.
                    if not (arm.slow and task.kind == "engine" and users > 1)
                },
                n_users,
                users,
                generator,
            )
            for users, calls in task.calls.items()
        }
    finally:
        gc.enable()


def _warm_up(task: Round, opened: dict[str, Call], n_users: int) -> None:
    """Ask every engine for the same users, so that all know as many names of items when the time is taken.

    An engine remembers the names that it has given. Without this an arm would be ahead whose delay is calibrated, which
    takes calls, and one that gives everybody the same items.
    """
    for arm in task.arms:
        if arm.graph is None:
            draw = np.random.default_rng(task.seed)
            warm_up(opened[arm.name], min(n_users, _WARM_UP_USERS), _WARM_UP_BATCH, draw)


def _open_graphs(task: Round) -> tuple[dict[str, Call], int]:
    opened: dict[str, Call] = {}
    n_users = 0
    for arm in task.arms:
        with BundleReader(arm.folder) as reader:
            n_users = reader.manifest.dataset.n_users
            graph = arm.graph.read_bytes() if arm.graph is not None else bytes(reader.read(MODEL_ONNX))
        opened[arm.name] = _scores(open_session(graph, task.kind == "graph", task.provider))
    return opened, n_users


def open_session(graph: bytes, folded: bool, provider: str = CPU) -> onnxruntime.InferenceSession:
    """Open a graph as every arm does: one thread; folded, or with all optimisation but constant folding.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        ConfigError: The provider does not work on this machine, and another would take over.
    """
    try:
        opened = session(graph, threads=THREADS, folded=None if folded else False, provider=provider)
    except GRAPH_ERRORS as error:
        raise BundleError(f"ONNX Runtime cannot load the graph: {' '.join(str(error).split())}") from error
    if provider not in opened.get_providers():
        raise ConfigError(f"{provider} does not work on this machine; check its driver, or leave --device out")
    return opened


def _scores(opened: onnxruntime.InferenceSession) -> Call:
    return lambda rows: opened.run(["scores"], {"users": rows})


def _open_engines(task: Round) -> tuple[dict[str, Call], int]:
    """Open an engine for each arm; ids, titles, seen items and popularity are one and the same object for all."""
    opened: dict[str, Call] = {}
    first: ServingBundle | None = None
    for arm in task.arms:
        bundle = load_for_serving(arm.folder)
        first = first or bundle
        if arm.graph is not None:
            graph = open_session(arm.graph.read_bytes(), folded=True)
            opened[arm.name] = unstripped_engine(_scores(graph), first.seen, list(first.item_ids), task.k)
            continue
        shared = replace(
            bundle,
            users=first.users,
            item_ids=first.item_ids,
            titles=first.titles,
            seen=first.seen,
            popularity=first.popularity,
            categories=first.categories,
        )
        opened[arm.name] = _engine(Engine(shared, index_threads=THREADS), list(first.users), task.k)
    if first is None:
        raise ValueError("a round without arms")
    return opened, len(first.users)


def _engine(engine: Engine, users: Sequence[str], k: int) -> Call:
    return lambda rows: engine.recommend_many([Request(users[row], k) for row in rows.tolist()])


def unstripped_engine(
    scores: Callable[[NDArray[np.int64]], object], seen: SeenItems, item_ids: Sequence[str], k: int
) -> Call:
    """Return how requests are answered from a graph that scores all items: no towers, no index, seen items dropped.

    Args:
        scores: User rows int64 [b] → a list whose first entry is float32 [b, I].
        seen: Training items per user.
        item_ids: External item ids.
        k: Items per answer.
    """

    def answer(rows: NDArray[np.int64]) -> list[list[tuple[str, float]]]:
        every: NDArray[np.float32] = scores(rows)[0]  # type: ignore[index]
        answers = []
        for user, row in zip(rows.tolist(), every, strict=True):
            row[seen.of(user)] = -np.inf
            most = min(k, len(row))
            best = np.argpartition(row, -most)[-most:]
            best = best[np.isfinite(row[best])]
            best = best[np.argsort(-row[best], kind="stable")]
            answers.append([(item_ids[item], float(row[item])) for item in best.tolist()])
        return answers

    return answer
