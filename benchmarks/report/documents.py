"""What the report reads out of the other benchmarks' documents: files of another kind or version are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.statistics import Ratio
from training.common.errors import DvibError, first_problem, shown


class Part(BaseModel):
    """Piece of a document; keys that the report does not need are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Environment(Part):
    """See ``benchmarks.environment``."""

    cpu: str | None
    cores: int | None
    usable_cores: int | None
    memory_bytes: int | None
    load_average_1min: float | None
    system: str
    python: str
    versions: dict[str, str | None]
    thread_variables: dict[str, str | None]


class Document(Part):
    """What every document holds.

    Attributes:
        command: The command that made it; empty where it was not recorded.
        environment: What it was made on.
    """

    command: str = ""
    environment: Environment

    @property
    def seed(self) -> int | None:
        """Seed of users, turns and resamples; None where there is none."""
        return getattr(getattr(self, "options", None), "seed", None)


class Times(Part):
    """Quantiles in microseconds."""

    p50: float
    p99: float


class RatioEntry(Part):
    """See ``benchmarks.statistics.Ratio``."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def ratio(self) -> Ratio:
        """The ratio itself."""
        return Ratio(self.value, self.low, self.high, self.confidence)


Kind = TypeVar("Kind", bound=Document)


def read_document(path: Path, benchmark: str, kind: type[Kind]) -> Kind:
    """Read a document.

    Args:
        path: The file.
        benchmark: The name that the benchmark writes into it.
        kind: What it holds.

    Raises:
        DvibError: It is no JSON, of another benchmark, or lacks something.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DvibError(f"{path} is no JSON: {error}; make it again") from error
    found = content.get("benchmark") if isinstance(content, dict) else None
    if found != benchmark:
        raise DvibError(f"{path} was not written by dvib-bench {benchmark} but by {shown(str(found))}; make it again")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise DvibError(f"{path}: {first_problem(error)}; make it again with this version") from error
