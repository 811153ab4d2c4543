"""Latency of a baseline's bundle beside a DVIB bundle: the graph, what a request runs, and a request over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.http_client import Connection, serving
from benchmarks.sampling import Call, Level, sample
from benchmarks.statistics import RESAMPLES, Quantiles, ratio_of_quantiles
from export.bundle import IDS, MODEL_ONNX, BundleReader
from export.manifest import Manifest
from export.onnx_safety import check_graph
from export.parity import session
from export.runtime import GRAPH_ERRORS
from service.engine import Engine, Request
from training.common.errors import BundleError
from training.common.strings import StringTable

THREADS = 1
"""Of ONNX Runtime and of FAISS, in every arm of this process; the server's defaults are the same."""
GRAPH_BATCHES = (1, 32)
LEVELS = 3 + len(GRAPH_BATCHES)
"""Load, the graph at each batch size, the engine, HTTP."""
LOADS = 1
"""Timed loads of each graph in a round."""
FOLDING = (
    "ONNX Runtime folds whatever does not depend on the user (VBPR's projection of the item features) into constants "
    "when it loads a graph: 'graph' times the folded graph, 'graph load' is what loading and folding take."
)


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: Rounds at every level, at least 2; the unit of the bootstrap.
        calls: Timed calls of each arm in a round.
        users_per_call: Users of one engine call.
        k: Items per answer.
        seed: Draws users, order and resamples.
    """

    rounds: int = 20
    calls: int = 200
    users_per_call: int = 1
    k: int = 10
    seed: int = 0


@dataclass(frozen=True)
class BundleArm:
    """One bundle, and the ways into it that are timed.

    Attributes:
        folder: Where it is.
        manifest: What it is.
        graph: ``model.onnx``, verified.
        users: External user ids.
    """

    folder: Path
    manifest: Manifest
    graph: bytes
    users: list[str]

    @classmethod
    def read(cls, folder: Path) -> BundleArm:
        """Read a bundle and try every way into it once.

        Raises:
            BundleError: It is missing, altered or inconsistent, or ONNX Runtime cannot run its graph.
        """
        Engine.load(folder, index_threads=THREADS)
        with BundleReader(folder) as reader:
            users = StringTable.from_arrays(reader.tensors(IDS), "users")
            arm = cls(folder, reader.manifest, bytes(reader.read(MODEL_ONNX)), list(users))
        try:
            check_graph(arm.graph, MODEL_ONNX)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        try:
            arm.graph_call()(np.zeros(1, dtype=np.int64))
        except (*GRAPH_ERRORS, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{folder}: ONNX Runtime cannot run {MODEL_ONNX}: {reason}") from error
        return arm

    def graph_call(self) -> Call:
        """Score all items for some users."""
        opened = session(self.graph, threads=THREADS)
        return lambda rows: opened.run(["scores"], {"users": rows})

    def load_call(self) -> Call:
        """Open the graph."""
        return lambda _rows: session(self.graph, threads=THREADS)

    def engine_call(self, k: int) -> Call:
        """Answer requests as the service does: user tower, index, seen items left out."""
        engine = Engine.load(self.folder, index_threads=THREADS)
        users = self.users
        return lambda rows: engine.recommend_many([Request(users[row], k) for row in rows.tolist()])

    def http_call(self, connection: Connection) -> Call:
        """Send one request over a connection."""
        targets = [connection.target(user) for user in self.users]
        return lambda rows: connection.post(targets[rows[0]])

    def document(self) -> dict[str, Any]:
        """Return what identifies the bundle."""
        return self.manifest.model_dump(include={"version", "model", "variant", "preset", "dimension"})


def check_comparable(baseline: Path, dvib: Path) -> None:
    """Refuse two bundles whose times would differ for other reasons than DVIB.

    Raises:
        BundleError: A bundle cannot be read, or model, data set or dimension differ.
    """
    with BundleReader(baseline) as first, BundleReader(dvib) as second:
        left, right = first.manifest, second.manifest
    for what, mine, theirs in (
        ("model", left.model, right.model),
        ("data set fingerprint", left.dataset.fingerprint[:12], right.dataset.fingerprint[:12]),
        ("dimension", left.dimension, right.dimension),
    ):
        if mine != theirs:
            raise BundleError(
                f"{baseline} and {dvib} cannot be compared: {what} {mine} and {theirs}; "
                "export two runs of the same model on the same data"
            )


def local_levels(arms: Mapping[str, BundleArm], options: Options) -> list[Level]:
    """Return the levels that run in this process."""
    names, users = tuple(arms), options.users_per_call
    levels = [Level("graph_load", "graph load", names, lambda name: arms[name].load_call(), 1, LOADS)]
    levels += [
        Level(
            f"graph_batch_{batch}",
            f"graph, batch {batch}",
            names,
            lambda name: arms[name].graph_call(),
            batch,
            options.calls,
        )
        for batch in GRAPH_BATCHES
    ]
    label = "towers + index" if users == 1 else f"towers + index × {users}"
    levels.append(Level("engine", label, names, lambda name: arms[name].engine_call(options.k), users, options.calls))
    return levels


@contextmanager
def http_level(arms: Mapping[str, BundleArm], options: Options) -> Iterator[Level]:
    """Start one server over all bundles, so that the arms share process and memory, with a connection per arm."""
    with serving({name: arm.folder for name, arm in arms.items()}) as (host, port), ExitStack() as stack:
        calls: dict[str, Call] = {}
        for name, arm in arms.items():
            connection = stack.enter_context(closing(Connection(host, port, name, options.k)))
            connection.check(arm.users[0], arm.manifest.version)
            calls[name] = arm.http_call(connection)
        yield Level("http", "HTTP request", tuple(arms), calls.__getitem__, 1, options.calls)


def measure(
    baseline: Path, dvib: Path, options: Options, on_round: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Time both bundles at every level.

    Args:
        baseline: The plain model's bundle.
        dvib: The DVIB model's bundle.
        options: How much is measured.
        on_round: Called after each round with the level's description.

    Returns:
        The document that ``--json`` writes; times in microseconds.

    Raises:
        BundleError: A bundle is unusable, or the two cannot be compared.
        ServerError: The server fails.
    """
    check_comparable(baseline, dvib)
    arms = {"baseline": BundleArm.read(baseline), "dvib": BundleArm.read(dvib)}
    n_users = len(arms["baseline"].users)
    generator = np.random.default_rng(options.seed)
    levels: dict[str, Any] = {}

    def run(level: Level) -> None:
        done = (lambda: on_round(level.description)) if on_round is not None else None
        times = sample(level, n_users, options.rounds, generator, on_round=done)
        levels[level.name] = _level_document(level, times, generator)

    for level in local_levels(arms, options):
        run(level)
    with http_level(arms, options) as level:
        run(level)
    return {
        "dataset": arms["baseline"].manifest.dataset.name,
        "bundles": {name: arm.document() for name, arm in arms.items()},
        "options": {**vars(options), "threads": THREADS, "resamples": RESAMPLES, "bootstrap_unit": "round"},
        "note": FOLDING,
        "levels": levels,
    }


def _level_document(
    level: Level, times: Mapping[str, NDArray[np.float64]], generator: np.random.Generator
) -> dict[str, Any]:
    return {
        "description": level.description,
        "users_per_call": level.users_per_call,
        "calls_per_round": level.calls,
        "microseconds": {name: Quantiles.of(values).document() for name, values in times.items()},
        "ratio_of_medians": ratio_of_quantiles(times["baseline"], times["dvib"], generator).document(),
        "samples_microseconds": {name: (values * 1e6).round(3).tolist() for name, values in times.items()},
    }
