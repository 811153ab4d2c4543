"""What a run says: bars met or missed, what went wrong, and what keeps it from saying anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from training.common.console import EXIT_DIFFERENT, EXIT_INCONCLUSIVE


@dataclass(frozen=True)
class Bar:
    """A bar and what was found.

    Attributes:
        name: For the document.
        text: What is compared.
        value: What was found; NaN, where there was nothing to be found, meets no bar.
        limit: It may not be more.
        unit: Of both.
        detail: More about the value.
    """

    name: str
    text: str
    value: float
    limit: float
    unit: str = ""
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the value is where it should be."""
        return self.value <= self.limit

    def line(self) -> str:
        """Say it to people."""
        detail = f" {self.detail}" if self.detail else ""
        unit = f" {self.unit}" if self.unit else ""
        said = "met" if self.met else "MISSED"
        return f"{self.text}: {self.value:.4g}{unit}{detail}, wanted at most {self.limit:.4g}{unit}: {said}"

    def document(self) -> dict[str, Any]:
        """Return the bar as JSON values."""
        value = self.value if self.value == self.value else None
        return {"text": self.text, "value": value, "limit": self.limit, "unit": self.unit, "met": self.met}


@dataclass(frozen=True)
class Verdict:
    """What a run says.

    Attributes:
        bars: What was to be kept.
        faults: What a service may never do, and did.
        doubts: Why the run proves nothing, bars met or not.
    """

    bars: list[Bar] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def code(self, *, check: bool) -> int:
        """Return the exit code: a fault is always one; doubts and bars only count where a check was asked for."""
        if self.faults:
            return EXIT_DIFFERENT
        if check and self.doubts:
            return EXIT_INCONCLUSIVE
        return EXIT_DIFFERENT if check and not all(bar.met for bar in self.bars) else 0

    def lines(self) -> Iterator[str]:
        """Say it to people."""
        for bar in self.bars:
            yield f"  {bar.line()}"
        for fault in self.faults:
            yield f"fault: {fault}"
        for doubt in self.doubts:
            yield f"inconclusive: {doubt}"

    def document(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        bars = {bar.name: bar.document() for bar in self.bars}
        return {"bars": bars, "faults": self.faults, "doubts": self.doubts}


def faults_of(errors: dict[str, int], what: str) -> list[str]:
    """Say what replies were wrong."""
    return [f"{what}: {count} requests with {fault}" for fault, count in errors.items()]
