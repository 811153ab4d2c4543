"""Is a DVIB export as fast as the plain model's? A verdict that can fall either way, with the controls to show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency import round as latency_round
from benchmarks.latency.arms import BASELINE, Arm
from benchmarks.latency.http_level import HttpArm, calibrate, http_round, level_name
from benchmarks.latency.round import Round, Times
from benchmarks.latency.verdict import Comparison, Verdict
from benchmarks.load.questions import Asked
from benchmarks.rounds import Runner, fresh_processes
from benchmarks.sampling import rotations
from benchmarks.statistics import CONFIDENCE, Quantiles, Ratio, ratio_of_quantiles
from export.runtime import CPU, onnxruntime
from training.common.errors import ConfigError

Kind = Literal["graph", "unfolded", "engine", "http"]
KINDS: tuple[Kind, ...] = ("graph", "unfolded", "engine", "http")
USERS_PER_CALL: dict[Kind, dict[int, float]] = {
    "graph": {1: 1.0, 32: 1.0, 256: 0.5},
    "unfolded": {1024: 0.05},
    "engine": {1: 1.0, 32: 0.5, 256: 0.3},
    "http": {1: 0.75, 8: 1.5, 32: 3.0},
}
"""Kind of level → users per call (over HTTP: requests in flight) → share of ``Options.calls``."""
SMALL_CATALOGUE = 10_000
HTTP_CONTROL_DELAY = 0.15
"""Over HTTP the control must lie beyond a margin of 5 %, and so it waits for longer than elsewhere."""
HTTP_LOOKS = 2
"""A round over HTTP takes seconds, most of them to start a server: it gets fewer looks."""


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        looks: Rounds after which a level is judged, ascending; it is settled at the first look that leaves no
            comparison inconclusive. Each look's interval is wider, so that all together err no more often than one.
        calls: Timed calls of each arm in a round.
        k: Items per answer.
        seed: Draws users, orders and resamples.
        kinds: Levels that are measured.
        provider: ONNX Runtime's execution provider at the graph levels.
    """

    looks: Sequence[int] = (20, 40, 80)
    calls: int = 200
    k: int = 10
    seed: int = 0
    kinds: Sequence[Kind] = KINDS
    provider: str = CPU

    @property
    def confidence(self) -> float:
        """Of one interval (Bonferroni)."""
        return 1 - (1 - CONFIDENCE) / len(self.looks)

    def looks_at(self, kind: Kind) -> Sequence[int]:
        """Return the looks at one kind of level."""
        return self.looks[:HTTP_LOOKS] if kind == "http" else self.looks


def delay_of(arm: Arm, kind: Kind) -> float:
    """Return by which share of its own median an arm is slowed down."""
    return HTTP_CONTROL_DELAY if kind == "http" and arm.role == "control" else arm.delay


def margin_of(kind: Kind, n_items: int) -> float:
    """Return the largest relative difference that counts as none."""
    if kind == "http":
        return 0.05
    return 0.03 if kind == "engine" and n_items > SMALL_CATALOGUE else 0.02


@dataclass
class Level:
    """One kind of level at one number of users per call, as far as it has been measured.

    Attributes:
        kind: What is timed.
        users: Users per call, or requests in flight.
        margin: See ``margin_of``.
        rounds: Arm → seconds of each round, float64 [calls] each.
        ratios: Arm → the ratio of medians at the last look.
        tails: Arm → the ratio of 99th percentiles at the last look.
    """

    kind: Kind
    users: int
    margin: float
    rounds: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    tails: dict[str, Ratio] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in the run."""
        return f"{self.kind}_{self.users}"

    @property
    def description(self) -> str:
        """For people."""
        return {
            "graph": f"model.onnx, {self.users} user{'s' * (self.users > 1)} per call",
            "unfolded": f"model.onnx, unfolded, {self.users} users per call",
            "engine": f"what a request runs × {self.users}",
            "http": f"HTTP, {self.users} in flight",
        }[self.kind]

    def add(self, times: Mapping[str, NDArray[np.float64]]) -> None:
        """Add one round."""
        for name, values in times.items():
            self.rounds.setdefault(name, []).append(values)

    def judge(self, arms: Sequence[Arm], options: Options) -> list[Comparison]:
        """Compare each arm with the baseline over all rounds so far."""
        samples = {name: np.stack(rounds) for name, rounds in self.rounds.items()}
        comparisons = []
        for arm in arms:
            if arm.name == BASELINE or arm.name not in samples:
                continue
            # The same resamples whatever the arm and the level.
            pair = (samples[BASELINE], samples[arm.name], np.random.default_rng(options.seed))
            self.ratios[arm.name] = ratio_of_quantiles(*pair, confidence=options.confidence)
            self.tails[arm.name] = ratio_of_quantiles(*pair, quantile=0.99, confidence=options.confidence)
            comparisons.append(Comparison(self.name, arm.name, arm.role, self.ratios[arm.name], self.margin))
        return comparisons

    def document(self, arms: Sequence[Arm]) -> dict[str, Any]:
        """Return everything as JSON values, times in microseconds."""
        samples = {name: np.stack(rounds) for name, rounds in self.rounds.items()}
        return {
            "description": self.description,
            "kind": self.kind,
            "users_per_call": self.users,
            "margin": self.margin,
            "delays": {arm.name: delay_of(arm, self.kind) for arm in arms if arm.delay and arm.name in samples},
            "rounds": len(samples[BASELINE]),
            "microseconds": {name: Quantiles.of(values).document() for name, values in samples.items()},
            "ratio_of_medians": {name: ratio.document() for name, ratio in self.ratios.items()},
            "ratio_of_p99": {name: ratio.document() for name, ratio in self.tails.items()},
            "findings": {
                arm.name: Comparison(self.name, arm.name, arm.role, self.ratios[arm.name], self.margin).finding
                for arm in arms
                if arm.name in self.ratios
            },
            "samples_microseconds": {name: (values * 1e6).round(2).tolist() for name, values in samples.items()},
        }


def measure(
    arms: Sequence[Arm], n_items: int, options: Options, on_round: Callable[[str], None] | None = None
) -> tuple[list[Level], Verdict]:
    """Time all arms at every level until each level is settled or its last look is over.

    Args:
        arms: The baseline first.
        n_items: Of the catalogue; chooses margins.
        options: How much is measured.
        on_round: Called after each round with what was measured.

    Returns:
        The levels, and what they say together.

    Raises:
        BundleError: A bundle cannot be opened, or, for HTTP, no user has enough items left.
        ConfigError: The provider is not there.
        DvibError: A process died.
        ServerError: A server fails.
    """
    if options.provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"this ONNX Runtime has no {options.provider}, only {', '.join(onnxruntime.get_available_providers())}; "
            "install the gpu group"
        )
    if "http" in options.kinds:
        Asked.read(arms[0].folder, options.k, options.seed)  # what HTTP would refuse after the other levels
    levels: list[Level] = []
    comparisons: list[Comparison] = []
    with fresh_processes(latency_round.__name__) as run:
        for kind in options.kinds:
            of_kind = [Level(kind, users, margin_of(kind, n_items)) for users in USERS_PER_CALL[kind]]
            play = _http_player(arms, options) if kind == "http" else _local_player(kind, arms, options, run)
            comparisons += _until_settled(of_kind, arms, options, play, on_round or (lambda _: None))
            levels += of_kind
    return levels, Verdict.of(comparisons)


Player = Callable[[Sequence[str], int], Times]
"""Arms in the order of opening, and the round's number → times."""


def _until_settled(
    levels: Sequence[Level],
    arms: Sequence[Arm],
    options: Options,
    play: Player,
    on_round: Callable[[str], None],
) -> list[Comparison]:
    generator = np.random.default_rng((options.seed, KINDS.index(levels[0].kind)))
    orders: list[list[str]] = []
    names = [arm.name for arm in arms if levels[0].kind != "http" or arm.graph is None]
    comparisons: list[Comparison] = []
    done = 0
    for look in options.looks_at(levels[0].kind):
        while done < look:
            orders = orders or rotations(names, generator)
            for users, times in play(orders.pop(), done).items():
                next(level for level in levels if level.users == users).add(times)
            done += 1
            on_round(levels[0].kind)
        comparisons = [comparison for level in levels for comparison in level.judge(arms, options)]
        if all(entry.role == "shown" or entry.finding != "inconclusive" for entry in comparisons):
            break
    return comparisons


def _calls(kind: Kind, options: Options) -> dict[int, int]:
    return {users: max(1, round(share * options.calls)) for users, share in USERS_PER_CALL[kind].items()}


def _local_player(
    kind: Literal["graph", "unfolded", "engine"], arms: Sequence[Arm], options: Options, run: Runner
) -> Player:
    by_name = {arm.name: arm for arm in arms}

    def play(order: Sequence[str], number: int) -> Times:
        opened = [by_name[name] for name in order]
        seed = (options.seed, KINDS.index(kind), number)
        return run(latency_round.play, Round(kind, opened, _calls(kind, options), options.k, options.provider, seed))

    return play


def _http_player(arms: Sequence[Arm], options: Options) -> Player:
    calls = _calls("http", options)
    medians = calibrate(arms[0].folder, k=options.k, concurrency=list(calls))
    by_name = {arm.name: _http_arms(arm, medians) for arm in arms if arm.graph is None}
    owners = {entry.name: name for name, entries in by_name.items() for entry in entries}

    def play(order: Sequence[str], number: int) -> Times:
        seed = int(np.random.SeedSequence((options.seed, number)).generate_state(1)[0])
        opened = [entry for name in order for entry in by_name[name]]
        found = http_round(opened, k=options.k, requests=calls, seed=seed)
        return {
            users: {owners[name]: np.array(seconds) for name, seconds in found[level_name(users)].items()}
            for users in calls
        }

    return play


def _http_arms(arm: Arm, medians: Mapping[int, float]) -> list[HttpArm]:
    """Return an arm as the server knows it: one with a delay is there once for each level, with that level's delay."""
    share = delay_of(arm, "http")
    if not share:
        return [HttpArm(arm.name, arm.folder)]
    return [
        HttpArm(f"{arm.name}, {users}", arm.folder, delay_us=share * median / users * 1e6, only=users)
        for users, median in medians.items()
    ]
