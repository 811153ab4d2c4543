"""Where the time of a request goes, and how far the engine is from what no engine could do without.

Each stage is timed by itself, in turns with all others, with the inputs that the stage before would have made. The
floors are timed among them: a call of ONNX Runtime that computes nothing, and one pass over the item vectors, which is
what looking at all of them once costs while they are float32.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import faiss
import numpy as np
import uvloop
from numpy.typing import NDArray
from onnx import TensorProto, helper
from uvicorn.server import ServerState

from benchmarks.bundle_facts import bundle_facts
from benchmarks.rounds import fresh_processes
from benchmarks.sampling import Call, Contestant, sample
from benchmarks.statistics import Quantiles, Ratio, Samples, ratio_of_quantiles
from benchmarks.warm_up import warm_up
from export.bundle import BundleReader
from export.index_search import sample_users
from export.manifest import Manifest
from export.publish import resolve
from export.runtime import onnxruntime
from export.serving import ServingBundle, load_for_serving
from service.engine import Engine
from service.http.app import create_app
from service.http.documents import recommend_document
from service.http.gate import Gate
from service.http.protocol import Protocol
from service.http.query import QueryReader
from service.http.reply import json_reply
from service.process.server import server_config
from service.settings import Settings
from service.values import Request
from training.common.errors import BundleError
from training.common.strings import StringTable

THREADS = 1
ENGINE, EMPTY, PASS = "engine", "empty call", "one pass"
STAGES = {
    "parse": "query string to checked parameters",
    "user": "id to row, row to vector and seen items",
    "ranking": "search, seen items dropped, exact order",
    "serialise": "answer to JSON",
    ENGINE: "the whole answer: user, ranking, ids and titles",
    "request": "all of it, from the bytes of a request to those of its reply, without sockets",
    EMPTY: "floor: a call of ONNX Runtime that computes nothing",
    PASS: "floor: the maximum of the item vectors",
}
_HTTP_STAGES = ("parse", "request", "serialise")
_MOST_USERS = 10_000
_ANSWERS = 64
_MODEL = "model"
BARRED_DIMENSION = 128
BARS = ((5_000, 10_000, 1.6), (10_001, 30_000, 1.3))
"""Fewest and most items, and the multiple of both floors that the engine's median may be: set for 7,000 and for 18,000
items. Of fewer the interpreter's share is larger; of more, memory's."""


def bar_of(manifest: Manifest, users_per_call: int) -> float | None:
    """Return how many times its floors the engine may take; None for what no bar was set for."""
    if manifest.dimension != BARRED_DIMENSION or users_per_call != 1:
        return None
    return next((bar for fewest, most, bar in BARS if fewest <= manifest.n_items <= most), None)


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: Processes, at least 2; the unit of the bootstrap.
        calls: Timed calls of every stage in a round.
        users_per_call: Users of one call.
        k: Items per answer.
        seed: Draws users, turns and resamples.
    """

    rounds: int = 20
    calls: int = 200
    users_per_call: int = 1
    k: int = 10
    seed: int = 0

    @property
    def stages(self) -> list[str]:
        """What is timed: an HTTP request asks for one user, so that its stages are left out with more."""
        return [name for name in STAGES if self.users_per_call == 1 or name not in _HTTP_STAGES]


def play(folder: Path, options: Options, number: int) -> dict[str, NDArray[np.float64]]:
    """Time one round in this process; stage → seconds, float64 [calls]."""
    faiss.omp_set_num_threads(THREADS)
    bundle = load_for_serving(folder)
    generator = np.random.default_rng((options.seed, number))
    with open_stages(bundle, options.k, options.users_per_call) as (calls, n_users):
        warm_up(calls[ENGINE], n_users, options.users_per_call, generator)
        gc.collect()
        gc.disable()
        try:
            return sample(
                {name: Contestant(calls[name], options.calls) for name in options.stages},
                n_users,
                options.users_per_call,
                generator,
            )
        finally:
            gc.enable()


@contextmanager
def open_stages(bundle: ServingBundle, k: int, users_per_call: int) -> Iterator[tuple[dict[str, Call], int]]:
    """Yield stage → its call, and how many users there are to be asked for."""
    engine = Engine(bundle, index_threads=THREADS)
    rows = sample_users(len(bundle.users), _MOST_USERS).tolist()
    ids = [bundle.users[row] for row in rows]
    requests = [Request(name, k) for name in ids]
    queries = engine.queries([(row, k) for row in rows])
    texts = [urlencode({"user_id": name, "k": k, "model": _MODEL}).encode() for name in ids]
    settings = Settings(max_k=k, default_k=1)
    read = QueryReader(settings)
    with _application(engine, settings, texts) as request:
        yield (
            {
                "parse": lambda users: read(texts[users[0]]),
                "user": _user_call(engine, bundle.users, requests),
                "ranking": lambda users: engine.ranker.top([queries[user] for user in users]),
                "serialise": _serialise_call(engine, requests),
                ENGINE: lambda users: engine.recommend_many([requests[user] for user in users]),
                "request": request,
                EMPTY: _empty_call(bundle.manifest.dimension, users_per_call),
                PASS: lambda _users: bundle.items.max(),
            },
            len(ids),
        )


def _user_call(engine: Engine, users: StringTable, requests: Sequence[Request]) -> Call:
    def call(drawn: NDArray[np.int64]) -> object:
        found = [(users.find(requests[user].user_id), requests[user].k) for user in drawn]
        return engine.queries([(row, k) for row, k in found if row is not None])

    return call


def _empty_call(dimension: int, users_per_call: int) -> Call:
    """Return a call of a graph that returns its input, float32 [B, D]."""
    shape: list[str | int | None] = ["batch", dimension]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["in"], ["out"])],
        "empty",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = np.zeros((users_per_call, dimension), dtype=np.float32)
    return lambda _users: session.run(["out"], {"in": given})


def _serialise_call(engine: Engine, requests: Sequence[Request]) -> Call:
    answers = [engine.recommend(request.user_id, request.k) for request in requests[:_ANSWERS]]
    version = engine.manifest.version

    def call(users: NDArray[np.int64]) -> object:
        user = int(users[0]) % len(answers)
        return json_reply(recommend_document(requests[user].user_id, _MODEL, version, answers[user])).body

    return call


class _Wire(asyncio.Transport):
    """The other end of a connection, without the connection.

    Attributes:
        reply: What is written, in one piece.
    """

    def __init__(self, reply: asyncio.Future[bytes]) -> None:
        super().__init__()
        self.reply = reply

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.reply.set_result(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """There is no connection."""

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


@contextmanager
def _application(engine: Engine, settings: Settings, texts: Sequence[bytes]) -> Iterator[Call]:
    """Yield a call that sends one request through the whole service, except for its sockets.

    Args:
        engine: Of the only model.
        settings: Of the service.
        texts: The users' query strings.

    Raises:
        BundleError: The reply to the first user is not OK.
    """
    app = create_app({_MODEL: engine}, settings)
    gate = Gate(app, settings)
    heads = [b"POST /recommend?%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % text for text in texts]
    with closing(uvloop.new_event_loop()) as loop:
        config = server_config(gate)
        config.load()
        protocol = Protocol.to(gate, settings)(config, ServerState(), {}, loop)
        wire = _Wire(loop.create_future())
        protocol.connection_made(wire)

        def call(users: NDArray[np.int64]) -> bytes:
            wire.reply = loop.create_future()
            loop.call_soon(protocol.data_received, heads[users[0]])
            return loop.run_until_complete(wire.reply)

        lifespan = app.router.lifespan_context(app)
        loop.run_until_complete(lifespan.__aenter__())
        try:
            status = call(np.zeros(1, dtype=np.int64)).partition(b"\r\n")[0].decode()
            if f" {HTTPStatus.OK.value} " not in status:
                raise BundleError(f"the service replies with {status!r}, wanted 200")
            yield call
        finally:
            protocol.connection_lost(None)
            loop.run_until_complete(lifespan.__aexit__(None, None, None))


def measure(folder: Path, options: Options, on_round: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Time every stage of a bundle's requests.

    Args:
        folder: The bundle, or its root of published versions.
        options: How much is measured.
        on_round: Called after each round.

    Returns:
        The document that ``--json`` writes; times in microseconds.

    Raises:
        BundleError: The bundle is unusable.
        DvibError: A round's process died.
    """
    folder = resolve(folder)
    with BundleReader(folder) as reader:
        manifest = reader.manifest
    rounds: list[dict[str, NDArray[np.float64]]] = []
    with fresh_processes(__name__) as run:
        for number in range(options.rounds):
            rounds.append(run(play, folder, options, number))
            on_round()
    samples = {name: np.stack([times[name] for times in rounds]) for name in options.stages}
    return {
        "bundle": bundle_facts(manifest),
        "options": {**vars(options), "threads": THREADS, "bootstrap_unit": "round, a process of its own"},
        "floors": _floors(samples, bar_of(manifest, options.users_per_call), options),
        "stages": {
            name: {
                "what": STAGES[name],
                "microseconds": Quantiles.of(times).document(),
                "samples_microseconds": (times * 1e6).round(3).tolist(),
            }
            for name, times in samples.items()
        },
        "remainders_microseconds": _remainders(samples),
    }


def _medians(times: Samples) -> Samples:
    return np.median(times, axis=1, keepdims=True)


def ratio_to_floors(samples: Mapping[str, Samples], generator: np.random.Generator) -> Ratio:
    """Return the engine's median ÷ the sum of both floors' medians, of each round."""
    floors = _medians(samples[EMPTY]) + _medians(samples[PASS])
    return ratio_of_quantiles(floors, _medians(samples[ENGINE]), generator)


def _floors(samples: Mapping[str, Samples], bar: float | None, options: Options) -> dict[str, Any]:
    ratio = ratio_to_floors(samples, np.random.default_rng(options.seed))
    return {"ratio": ratio.document(), "bar": bar, "holds": None if bar is None else ratio.value <= bar}


def _remainders(samples: Mapping[str, Samples]) -> dict[str, float]:
    """Return what is left of a whole when its parts are taken away: the median over the rounds."""
    wholes = {
        "ids, titles and objects": (ENGINE, ("user", "ranking")),
        "framework and queue": ("request", ("parse", ENGINE, "serialise")),
    }
    return {
        name: round(
            float(np.median(_medians(samples[whole]) - sum(_medians(samples[part]) for part in parts))) * 1e6, 3
        )
        for name, (whole, parts) in wholes.items()
        if whole in samples
    }


def report(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a measurement as lines for people."""
    bundle, options, floors = document["bundle"], document["options"], document["floors"]
    yield (
        f"{bundle['dataset']}: {bundle['n_items']} items, dimension {bundle['dimension']}, {bundle['index']} index, "
        f"k {options['k']}, {options['users_per_call']} users per call, one thread"
    )
    yield f"{'stage':<26}{'p50 µs':>9}{'p99 µs':>9}  what"
    for name, stage in document["stages"].items():
        times = stage["microseconds"]
        yield f"{name:<26}{times['p50']:>9.1f}{times['p99']:>9.1f}  {stage['what']}"
    for name, left in document["remainders_microseconds"].items():
        yield f"{name:<26}{left:>9.1f}{'':>9}  by difference"
    ratio, bar = floors["ratio"], floors["bar"]
    wanted = "no bar for this size" if bar is None else f"bar {bar}: {'held' if floors['holds'] else 'MISSED'}"
    yield (
        f"engine ÷ (empty call + one pass): {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}], {wanted}"
    )
