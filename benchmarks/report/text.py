"""Markdown for the report: tables, figures with units, and the checks that its first table lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.statistics import Ratio

Outcome = Literal["met", "missed", "inconclusive", "no bar"]
NONE = "–"
"""Stands for a figure that was not taken."""


@dataclass(frozen=True)
class Check:
    """One line of the table that a person reads first.

    Attributes:
        what: What was looked at.
        found: The figure.
        wanted: What it should be.
        outcome: Whether it is.
    """

    what: str
    found: str
    wanted: str
    outcome: Outcome

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line; what is not as wanted stands out."""
        strong = "" if self.outcome in {"met", "no bar"} else "**"
        return cell(self.what), cell(self.found), cell(self.wanted), f"{strong}{self.outcome}{strong}"


def cell(text: str) -> str:
    """Return a text that stays in its cell: parts of it may be a stranger's."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def code(text: str) -> str:
    """Return a text in code style; a backtick inside would end it early."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Iterator[str]:
    """Yield a table and the empty line behind it.

    Args:
        header: Names of the columns.
        rows: Their cells, as Markdown.
        left: So many columns hold text and stand on the left; the others hold figures.
    """
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---' if column < left else '---:' for column in range(len(header)))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def picture(title: str, stem: str) -> Iterator[str]:
    """Yield a plot that lies beside the report, the PNG with a link to the SVG."""
    yield f"[![{title}]({stem}.png)]({stem}.svg)"
    yield ""


def figure(value: float | None, digits: int = 1) -> str:
    """Return a figure with thousands set apart."""
    return NONE if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def megabytes(count: float | None) -> str:
    """Return bytes in MB (a million bytes)."""
    return NONE if count is None else f"{count / 1e6:,.2f}"


def ratio_text(ratio: Ratio, digits: int = 3) -> str:
    """Return a ratio with its interval."""
    return f"{ratio.value:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


def outcome_of(met: bool | None) -> Outcome:
    """Return the word; None stands for a size that no bar was set for."""
    if met is None:
        return "no bar"
    return "met" if met else "missed"


def listed(names: Sequence[str]) -> str:
    """Return names as a person lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
