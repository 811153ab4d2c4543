"""Arms beside each other over HTTP, in one server: the level at which a person waits for a reply."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.http_client import Server, running
from benchmarks.load.client import Connections
from benchmarks.load.loops import closed_block, no_collection
from benchmarks.load.questions import Asked, Recommend
from benchmarks.sampling import shuffled

_BLOCK = 20
"""Counted requests of one arm at a stretch, or a few more; at least twice the concurrency."""
_CALIBRATION = 100
"""Requests per request under way."""


@dataclass(frozen=True)
class HttpArm:
    """One arm.

    Attributes:
        name: Unique among the arms.
        folder: Its bundle; several arms may share one.
        delay_us: Microseconds by which every answer is made slower on purpose.
        only: The one level, by its requests under way, that the arm takes part in; None for all.
    """

    name: str
    folder: Path
    delay_us: float = 0.0
    only: int | None = None


def level_name(concurrency: int) -> str:
    """Return the name of the level at which so many requests are under way."""
    return f"http_{concurrency}"


def http_round(
    arms: Sequence[HttpArm], *, k: int, requests: Mapping[int, int], seed: int
) -> dict[str, dict[str, list[float]]]:
    """Time one round: a new server process that has loaded the arms in the order given, and short turns of each.

    In a turn all arms are asked for the same users, in an order drawn for it. Each turn of an arm begins with requests
    that do not count, and ends with others that keep the server as busy until the last that counts is answered.

    Args:
        arms: The contestants, all of the same users.
        k: Items per answer.
        requests: Requests under way at any time → counted requests of each arm at that level.
        seed: Draws users and turns.

    Returns:
        Level → arm → seconds of each counted request.

    Raises:
        BundleError: A bundle is unusable.
        ServerError: The server fails, or a reply is not the one that was asked for.
    """
    generator = np.random.default_rng(seed)
    asked = {folder: Asked.read(folder, k, seed) for folder in dict.fromkeys(arm.folder for arm in arms)}
    # Names of one length: requests and replies of all arms are equally long.
    questions = {arm.name: asked[arm.folder].questions(f"arm{row:02}", k) for row, arm in enumerate(arms)}
    times: dict[str, dict[str, list[float]]] = {}
    with _arm_server(arms) as server, no_collection():
        for under_way, count in requests.items():
            with Connections((server.host, server.port), under_way) as connections:
                chosen = {arm.name: questions[arm.name] for arm in arms if arm.only in (None, under_way)}
                for asking in chosen.values():
                    connections.ask_each(asking)
                times[level_name(under_way)] = _turns(connections, chosen, count, generator)
    return times


def _turns(
    connections: Connections, questions: dict[str, Sequence[Recommend]], requests: int, generator: np.random.Generator
) -> dict[str, list[float]]:
    """Return arm → seconds of ``requests`` requests, by taking turns."""
    times: dict[str, list[float]] = {name: [] for name in questions}
    n_users = min(map(len, questions.values()))
    turns = max(1, requests // max(_BLOCK, 2 * connections.count))
    for turn in np.array_split(generator.integers(n_users, size=requests), turns):
        users = turn.tolist()
        for name in shuffled(list(questions), generator):
            chosen = [questions[name][user] for user in users]
            times[name] += closed_block(connections, chosen, lead=connections.count)
    return times


@contextmanager
def _arm_server(arms: Sequence[HttpArm]) -> Iterator[Server]:
    document = [
        {"name": f"arm{row:02}", "folder": str(arm.folder.absolute()), "delay_us": arm.delay_us}
        for row, arm in enumerate(arms)
    ]
    with running("benchmarks.load.arm_server", json.dumps({"arms": document})) as server:
        yield server


def calibrate(folder: Path, *, k: int, concurrency: Sequence[int], seed: int = 0) -> dict[int, float]:
    """Return the median latency of a bundle at each level, in seconds, from few requests.

    In a closed loop of ``c`` requests each waits for ``c`` answers: a delay that shall add a share ``p`` to the median
    there is ``p × median ÷ c`` for every answer.

    Raises:
        BundleError: The bundle is unusable.
        ServerError: The server fails.
    """
    arm = HttpArm("calibrated", folder)
    times = http_round([arm], k=k, requests={count: count * _CALIBRATION for count in concurrency}, seed=seed)
    return {count: float(np.median(times[level_name(count)][arm.name])) for count in concurrency}
