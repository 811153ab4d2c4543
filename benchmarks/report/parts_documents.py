"""What the report reads out of the documents about one bundle or about made-up ones."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from benchmarks.report.documents import Document, Part, RatioEntry, Times


class BundleEntry(Part):
    """What was asked, by the documents that are about one bundle."""

    version: str
    model: str
    variant: str
    dimension: int
    n_items: int


class Stage(Part):
    """A stage of a request."""

    what: str
    microseconds: Times


class Floors(Part):
    """The engine beside its floors."""

    ratio: RatioEntry
    bar: float | None
    holds: bool | None


class StagesOptions(Part):
    """See ``benchmarks.stages.Options``."""

    rounds: int
    calls: int
    users_per_call: int
    k: int
    seed: int


class StagesBundle(BundleEntry):
    """The bundle and its data set."""

    dataset: str
    index: str


class Stages(Document):
    """``stages.json``."""

    bundle: StagesBundle
    options: StagesOptions
    floors: Floors
    stages: dict[str, Stage]
    remainders_microseconds: dict[str, float]


class LoadTimes(Times):
    """Quantiles in microseconds."""

    max: float


class LoadFigures(Part):
    """An endpoint at a load."""

    requests: int
    offered_per_second: float | None
    replies_per_second: float
    latency_microseconds: LoadTimes
    server_cpu_microseconds: float
    client_share: float
    server_resident_bytes: int


class LoadBar(Part):
    """A bar of the load benchmark."""

    text: str
    ratio: RatioEntry
    limit: float
    met: bool | None


class LoadOptions(Part):
    """See ``benchmarks.load.measure.Options``."""

    rounds: int
    seconds: float
    k: int
    seed: int


class Endpoints(Part):
    """What is loaded: the service with its bundle, other bundles, and the constant reply."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, LoadFigures]
    bundle: LoadFigures
    constant: LoadFigures

    @property
    def all(self) -> dict[str, LoadFigures]:
        """Name → figures."""
        return {"bundle": self.bundle, **self.__pydantic_extra__, "constant": self.constant}


class LoadBundles(Part):
    """The bundle that the bars are about; those beside it are in the tables only."""

    bundle: BundleEntry


class Load(Document):
    """``load.json``."""

    dataset: str
    bundles: LoadBundles
    options: LoadOptions
    reply_bytes: int
    other_cores_busy: float | None = None
    engine_batch: int
    engine_cpu_microseconds_per_user: list[float] = Field(min_length=1)
    bars: dict[str, LoadBar]
    bars_are_for: str
    client_limits: list[str]
    errors: list[str]
    loads: dict[str, Endpoints] = Field(min_length=1)


class Memory(Part):
    """Resident bytes of a process."""

    loaded: int


class Recall(Part):
    """Of an index that is not exact."""

    k: int
    value: float


class GrowthPoint(Part):
    """A bundle of made-up vectors, measured; see ``benchmarks.growth.measure``."""

    axis: Literal["items", "users", "k", "seen"]
    value: int
    items: int
    factory: str
    seed: int
    recall: Recall | None
    file_bytes: int
    memory_bytes: Memory
    load_seconds: float
    microseconds: Times
    one_pass_microseconds: float | None


class GrowthBase(Part):
    """What the bundles have in common, but for what is varied."""

    items: int
    users: int
    seen: int
    dimension: int


class Skipped(Part):
    """A bundle that did not fit into memory."""

    bundle: str
    index: str
    reason: str


class Growth(Document):
    """``growth.json``."""

    points: list[GrowthPoint]
    skipped: list[Skipped]
    base: GrowthBase
    calls: int

    @property
    def seed(self) -> int | None:
        """Seed of the bundles and of what they are asked."""
        return self.points[0].seed if self.points else None


class PeersOptions(Part):
    """See ``benchmarks.peers.Options``."""

    rounds: int
    calls: int
    k: int
    compared: int
    seed: int


class PeerEntry(Part):
    """Another way to do the same job, or this project's own."""

    what: str
    microseconds: Times
    ratio_to_ours: RatioEntry
    differing_answers: int


class Peers(Document):
    """``peers.json``; the first arm is this project's engine."""

    bundle: StagesBundle
    options: PeersOptions
    versions: dict[str, str]
    not_installed: dict[str, str]
    arms: dict[str, PeerEntry] = Field(min_length=1)

    @property
    def ours(self) -> str:
        """Name of this project's engine."""
        return next(iter(self.arms))


class AllUsersBar(Part):
    """What the whole command may take, and whether it does: 0, 1 for no, 4 for undecided."""

    max_ratio: float
    code: Literal[0, 1, 4]


class AllUsersRatios(Part):
    """Of the command and its parts to the bare product."""

    command: RatioEntry
    ranking: RatioEntry
    loading: RatioEntry


class AllUsersSeconds(Part):
    """Medians."""

    product: float
    command: float
    ranking: float
    loading: float


class AllUsers(Document):
    """``all-users.json``."""

    dataset: str
    users: int
    items: int
    dimension: int
    seen: int
    k: int
    rounds: int
    threads: int
    seconds: AllUsersSeconds
    ratios: AllUsersRatios
    bar: AllUsersBar
    seed_: int = Field(alias="seed")

    @property
    def seed(self) -> int | None:
        """Seed of order and resamples."""
        return self.seed_
