"""The same job by what a user would pick instead: the k best unseen items of one user, one thread, side by side.

Every peer gets this bundle's vectors and does the job in the way that its own documentation shows: user id in, item ids
and scores out. Each has copies of its own of whatever it reads; every round is a process of its own and opens the peers
in another order, so that nobody always has the better place in memory.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.bundle_facts import bundle_facts
from benchmarks.peer_services import PEERS, THREADS, Ask, Material
from benchmarks.rounds import fresh_processes
from benchmarks.sampling import Call, Contestant, sample, shuffled
from benchmarks.statistics import Quantiles, ratio_of_quantiles
from benchmarks.warm_up import warm_up
from export.bundle import BundleReader
from export.index_search import sample_users
from export.publish import resolve
from export.serving import ServingBundle, load_for_serving
from service.engine import Engine
from service.values import Request
from training.common.errors import BundleError, ConfigError, nearest

OURS = "dvib"
_MOST_USERS = 10_000
_TOLERANCE = 1e-5
"""Answers may differ where exact scores are as near as this, relative to the user's largest: float32 rounds there."""


def _open_ours(bundle: ServingBundle, k: int) -> Ask:
    engine = Engine(bundle, index_threads=THREADS)
    return lambda user_id: [
        (item.item_id, item.score) for item in engine.recommend_many([Request(user_id, k)])[0].items
    ]


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        rounds: Processes, at least 2; the unit of the bootstrap.
        calls: Timed calls of everybody in a round.
        k: Items per answer.
        compared: Users whose answers are compared.
        seed: Draws users, orders and resamples.
    """

    rounds: int = 10
    calls: int = 200
    k: int = 10
    compared: int = 500
    seed: int = 0


def lacking(names: Sequence[str]) -> dict[str, str]:
    """Return which of some peers are not installed → the packages to install.

    Raises:
        ConfigError: There is no peer of a name.
    """
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--peer: no peer '{name}'{nearest(name, PEERS)}")
    missing = {name: [p for p in PEERS[name].packages if importlib.util.find_spec(p) is None] for name in names}
    return {name: " ".join(packages) for name, packages in missing.items() if packages}


def askable_users(bundle: ServingBundle, k: int) -> NDArray[np.int64]:
    """Return the rows of the users, at most ten thousand, who have k items left that they have not seen.

    Peers fill a shorter answer up with something else, each in its own way.

    Raises:
        BundleError: There is no such user.
    """
    left = len(bundle.item_ids) - np.diff(bundle.seen.offsets)
    rows = np.flatnonzero(left >= k)
    if len(rows) == 0:
        raise BundleError(f"no user of this bundle has {k} items left to be recommended; pass a smaller --k")
    return np.asarray(rows[sample_users(len(rows), _MOST_USERS)])


@contextmanager
def _opened(bundle: ServingBundle, names: Sequence[str], k: int) -> Iterator[dict[str, Ask]]:
    """Open ours and the peers, in this order; every library has one thread."""
    faiss.omp_set_num_threads(THREADS)
    material = Material.of(bundle, k)
    asked = {name: _open_ours(bundle, k) if name == OURS else PEERS[name].open(material) for name in names}
    with threadpool_limits(THREADS):  # of all that is loaded by now
        yield asked


def play(folder: Path, names: Sequence[str], options: Options, number: int) -> dict[str, NDArray[np.float64]]:
    """Time one round in this process; name → seconds, float64 [calls]."""
    generator = np.random.default_rng((options.seed, number))
    bundle = load_for_serving(folder)
    ids = [bundle.users[row] for row in askable_users(bundle, options.k).tolist()]
    with _opened(bundle, shuffled(names, generator), options.k) as asked:
        contestants = {name: Contestant(_call(ask, ids), options.calls) for name, ask in asked.items()}
        for contestant in contestants.values():
            warm_up(contestant.call, len(ids), 1, generator)
        gc.collect()
        gc.disable()
        try:
            return sample(contestants, len(ids), 1, generator)
        finally:
            gc.enable()


def _call(ask: Ask, ids: Sequence[str]) -> Call:
    return lambda drawn: ask(ids[drawn[0]])


class Comparison(NamedTuple):
    """What came of comparing answers.

    Attributes:
        users: Whose answers were compared.
        differing: Name → users whose answers differ.
        threads: Pool of threads of the process → its size.
    """

    users: int
    differing: dict[str, int]
    threads: dict[str, int]


def compare(folder: Path, names: Sequence[str], options: Options) -> Comparison:
    """Count whose answers differ from ours by more than rounding and ties.

    Items may change places, or take the place of another, where their exact scores are the same but for what float32
    rounds; a seen item, or a repeated one, is always a difference.
    """
    bundle = load_for_serving(folder)
    rows = askable_users(bundle, options.k)
    rows = rows[sample_users(len(rows), options.compared)]
    material = Material.of(bundle, options.k)
    places = {name: row for row, name in enumerate(material.item_ids)}
    differing = dict.fromkeys(names, 0)
    with _opened(bundle, [OURS, *names], options.k) as asked:
        for user in rows.tolist():
            wide = material.users[user].astype(np.float64)
            answers = {name: [places[item] for item, _ in ask(material.user_ids[user])] for name, ask in asked.items()}
            for name in names:
                differing[name] += not agree(answers[OURS], answers[name], material.items, wide, bundle.seen.of(user))
        threads = {pool["prefix"]: int(pool["num_threads"]) for pool in threadpool_info()}
    return Comparison(len(rows), differing, threads)


def agree(
    ours: Sequence[int],
    theirs: Sequence[int],
    items: NDArray[np.float32],
    vector: NDArray[np.float64],
    seen: NDArray[np.int32],
) -> bool:
    """Tell whether two answers are the same but for ties and rounding.

    Args:
        ours: Item rows, best first.
        theirs: Item rows, best first.
        items: float32 [I, D].
        vector: The user's, float64 [D].
        seen: Item rows that must not be there.
    """
    if len(ours) != len(theirs) or len(set(theirs)) != len(theirs) or set(theirs) & set(seen.tolist()):
        return False
    mine, others = (items[list(rows)].astype(np.float64) @ vector for rows in (ours, theirs))
    return bool(np.abs(mine - others).max() <= _TOLERANCE * max(np.abs(mine).max(), np.finfo(np.float32).tiny))


def measure(
    folder: Path, names: Sequence[str], options: Options, on_round: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Time the peers that are installed beside this project's engine.

    Args:
        folder: The bundle, or its root of published versions.
        names: Peers out of ``PEERS``.
        options: How much is measured.
        on_round: Called after each round.

    Returns:
        The document that ``--json`` writes; times in microseconds.

    Raises:
        BundleError: The bundle is unusable, or nobody in it can be asked for.
        ConfigError: There is no peer of a name, or none of them is installed.
        DvibError: A round's process died.
    """
    missing = lacking(names)
    present = [name for name in names if name not in missing]
    if not present:
        raise ConfigError(f"no peer is installed; run: pip install {' '.join(missing.values())}")
    folder = resolve(folder)
    with BundleReader(folder) as reader:
        manifest = reader.manifest
    packages = list(dict.fromkeys(package for name in present for package in PEERS[name].packages))
    with fresh_processes(__name__, *packages) as run:
        comparison = run(compare, folder, present, options)
        rounds = []
        for number in range(options.rounds):
            rounds.append(run(play, folder, [OURS, *present], options, number))
            on_round()
    samples = {name: np.stack([times[name] for times in rounds]) for name in (OURS, *present)}
    generator = np.random.default_rng(options.seed)
    return {
        "bundle": bundle_facts(manifest),
        "options": {**vars(options), "threads": THREADS, "bootstrap_unit": "round, a process of its own"},
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "not_installed": missing,
        "compared_users": comparison.users,
        "thread_pools": comparison.threads,
        "arms": {
            name: {
                "what": "this project's engine" if name == OURS else PEERS[name].what,
                "microseconds": Quantiles.of(times).document(),
                "ratio_to_ours": ratio_of_quantiles(samples[OURS], times, generator).document(),
                "differing_answers": comparison.differing.get(name, 0),
                "samples_microseconds": (times * 1e6).round(3).tolist(),
            }
            for name, times in samples.items()
        },
    }


def report(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a measurement as lines for people."""
    bundle, options = document["bundle"], document["options"]
    yield (
        f"{bundle['dataset']}: the {options['k']} best unseen of {bundle['n_items']} items, dimension "
        f"{bundle['dimension']}, one user per call, one thread; ours with {bundle['index']} index"
    )
    yield f"{'':<10}{'p50 µs':>9}{'p99 µs':>9}  {'÷ ours':<22}{'differing':>9}  what"
    for name, arm in document["arms"].items():
        times, ratio = arm["microseconds"], arm["ratio_to_ours"]
        interval = "" if name == OURS else f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        differing = "" if name == OURS else f"{arm['differing_answers']}/{document['compared_users']}"
        yield f"{name:<10}{times['p50']:>9.1f}{times['p99']:>9.1f}  {interval:<22}{differing:>9}  {arm['what']}"
    for name, packages in document["not_installed"].items():
        yield f"{name}: not installed, skipped; to have it: pip install {packages}"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items())


def faster(document: Mapping[str, Any]) -> list[str]:
    """Return the peers that are faster than ours, beyond the interval."""
    return [name for name, arm in document["arms"].items() if arm["ratio_to_ours"]["high"] < 1]


def differing(document: Mapping[str, Any]) -> list[str]:
    """Return the peers that do not do the same job: some of their answers are others."""
    return [name for name, arm in document["arms"].items() if arm["differing_answers"]]
