"""What an interval says about two arms, and whether a run may say anything at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.statistics import Ratio
from training.common.console import EXIT_DIFFERENT, EXIT_INCONCLUSIVE, EXIT_VOID

Finding = Literal["equivalent", "different", "inconclusive"]
Role = Literal["same", "measured", "control", "shown"]
"""What an arm is there for: ``same`` is the baseline once more and must be equivalent; ``control`` is slower on purpose
and must be found slower; ``measured`` is what the run is about; ``shown`` is judged by nobody."""


def finding_of(ratio: Ratio, margin: float) -> Finding:
    """Judge an interval by two one-sided tests (Schuirmann 1987): equivalent if it lies inside 1 ± margin.

    Args:
        ratio: Arm ÷ baseline. A 90 % interval makes each of the two tests one at 5 %.
        margin: Largest relative difference that is none, chosen before the measurement.

    Returns:
        ``different`` if the interval lies wholly outside, ``inconclusive`` if it has a part on either side.
    """
    if 1 - margin <= ratio.low and ratio.high <= 1 + margin:
        return "equivalent"
    if ratio.high < 1 - margin or ratio.low > 1 + margin:
        return "different"
    return "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """One arm beside the baseline at one level.

    Attributes:
        level: Name of the level.
        arm: Name of the arm.
        role: What the arm is there for.
        ratio: Of the medians, arm ÷ baseline.
        margin: See ``finding_of``.
    """

    level: str
    arm: str
    role: Role
    ratio: Ratio
    margin: float

    @property
    def finding(self) -> Finding:
        """What the interval says."""
        return finding_of(self.ratio, self.margin)

    @property
    def as_wanted(self) -> bool:
        """Whether the arm is found to be what it must be; what is only shown may be anything."""
        if self.role == "control":
            return self.finding == "different" and self.ratio.low > 1
        return self.role == "shown" or self.finding == "equivalent"


@dataclass(frozen=True)
class Verdict:
    """What a whole run says.

    Attributes:
        code: Exit code: 0 equivalent, 1 different, 3 void, 4 inconclusive.
        reasons: The comparisons that decide it; none for *equivalent*.
    """

    code: int
    reasons: Sequence[Comparison]

    @classmethod
    def of(cls, comparisons: Iterable[Comparison]) -> Verdict:
        """Judge a run: first its own controls, then what it measured.

        A run that finds two equal arms apart, or overlooks an arm that is slower on purpose, says nothing about any
        other arm.
        """
        missed = [entry for entry in comparisons if not entry.as_wanted]
        controls = [entry for entry in missed if entry.role != "measured"]
        if controls:
            return cls(EXIT_VOID, controls)
        different = [entry for entry in missed if entry.finding == "different"]
        if different:
            return cls(EXIT_DIFFERENT, different)
        if missed:
            return cls(EXIT_INCONCLUSIVE, missed)
        return cls(0, [])

    @property
    def word(self) -> str:
        """The verdict in one word."""
        return {0: "equivalent", EXIT_DIFFERENT: "different", EXIT_VOID: "void", EXIT_INCONCLUSIVE: "inconclusive"}[
            self.code
        ]

    def document(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "word": self.word,
            "code": self.code,
            "reasons": [
                {"level": entry.level, "arm": entry.arm, "role": entry.role, "finding": entry.finding}
                for entry in self.reasons
            ],
        }
