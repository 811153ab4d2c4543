"""What the report reads out of the latency benchmark's document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from benchmarks.latency.verdict import Comparison, Finding, Role, Verdict, finding_of
from benchmarks.report.documents import Document, Part, RatioEntry, Times
from training.common.errors import shown


class ArmEntry(Part):
    """An arm of the latency benchmark; see ``benchmarks.latency.arms``."""

    role: Role | Literal["baseline"]
    version: str
    model: str
    variant: str
    preset: str
    dimension: int
    n_items: int
    index: str
    dataset: str = ""
    bytes: dict[str, int]


Rounds = Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1)]
"""Microseconds of each call of each round."""


class LevelEntry(Part):
    """One level of the latency benchmark; arm → figures."""

    description: str
    kind: str
    margin: float
    delays: dict[str, float]
    rounds: int
    microseconds: dict[str, Times]
    ratio_of_medians: dict[str, RatioEntry]
    ratio_of_p99: dict[str, RatioEntry]
    findings: dict[str, Finding]
    samples_microseconds: dict[str, Rounds]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not self.ratio_of_medians.keys() == self.ratio_of_p99.keys() == self.findings.keys():
            raise ValueError("ratios and findings are of different arms")
        if self.samples_microseconds.keys() != self.microseconds.keys():
            raise ValueError("samples and quantiles are of different arms")
        if not all(times.p50 > 0 for times in self.microseconds.values()):
            raise ValueError("a median is not above 0")
        for name, ratio in self.ratio_of_medians.items():
            found = finding_of(ratio.ratio, self.margin)
            if self.findings[name] != found:
                raise ValueError(f"says '{self.findings[name]}' of {shown(name)}, but its interval is {found}")
        return self


class Reason(Part):
    """A comparison that decided the verdict."""

    level: str
    arm: str
    role: Role
    finding: Finding


class VerdictEntry(Part):
    """See ``benchmarks.latency.verdict.Verdict``."""

    word: str
    code: Literal[0, 1, 3, 4]
    reasons: list[Reason]

    @model_validator(mode="after")
    def _word_fits_code(self) -> Self:
        if self.word != Verdict(self.code, []).word:
            raise ValueError(f"'{self.word}' does not go with exit code {self.code}")
        return self


class LatencyOptions(Part):
    """See ``benchmarks.latency.measure.Options``."""

    calls: int
    k: int
    seed: int
    provider: str
    inject: float
    confidence: float


class Latency(Document):
    """``latency.json``."""

    arms: dict[str, ArmEntry]
    options: LatencyOptions
    verdict: VerdictEntry
    levels: dict[str, LevelEntry] = Field(min_length=1)
    loading: dict[str, dict[str, list[float | None]]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arms_are_known(self) -> Self:
        baselines = [name for name, arm in self.arms.items() if arm.role == "baseline"]
        if len(baselines) != 1:
            raise ValueError(f"wants one arm that is the baseline, got {len(baselines)}")
        for name, level in self.levels.items():
            unknown = sorted({*level.microseconds, *level.findings} - self.arms.keys())
            if unknown or level.findings.keys() != level.microseconds.keys() - {*baselines}:
                raise ValueError(f"level {shown(name)} and the list of arms do not go together")
            if baselines[0] not in level.microseconds:
                raise ValueError(f"level {shown(name)} has no baseline")
        judged = Verdict.of([entry for arm in self.arms for entry in self.comparisons(arm)])
        if judged.code != self.verdict.code:
            raise ValueError(f"says '{self.verdict.word}', but its intervals say '{judged.word}'")
        return self

    @property
    def baseline(self) -> str:
        """Name of the baseline."""
        return next(name for name, arm in self.arms.items() if arm.role == "baseline")

    @property
    def measured(self) -> list[str]:
        """Names of the DVIB arms."""
        return [name for name, arm in self.arms.items() if arm.role == "measured"]

    def order(self, names: Iterable[str]) -> list[str]:
        """Return some arms in the order of the run's list."""
        wanted = set(names)
        return [name for name in self.arms if name in wanted]

    def comparison(self, level: str, arm: str) -> Comparison:
        """Return an arm beside the baseline at a level, as the run has judged it."""
        role, entry = self.arms[arm].role, self.levels[level]
        if role == "baseline":
            raise ValueError("the baseline is not compared with itself")
        return Comparison(level, arm, role, entry.ratio_of_medians[arm].ratio, entry.margin)

    def comparisons(self, arm: str) -> list[Comparison]:
        """Return an arm beside the baseline at each level that it was part of."""
        return [self.comparison(name, arm) for name, level in self.levels.items() if arm in level.findings]
