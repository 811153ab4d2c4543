"""``dvib-export diff``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.common.console import EXIT_DIFFERENT, require_groups
from training.common.errors import printable

if TYPE_CHECKING:
    from export.diff import Difference

app = typer.Typer()

_VERDICTS = {
    "same_fingerprint": "architecture (operators, attributes, edges, shapes, types)",
    "same_wiring": "wiring (the same, with the tensors' names)",
    "same_blanked": "graph with the learned tensors zeroed (features and edges too)",
    "same_bytes": "graph",
}


@app.command(epilog="Example: `dvib-export diff bundles/baseline bundles/dvib`")
def diff(
    first: Annotated[Path, typer.Argument(help="A bundle's folder, or a root of published versions.")],
    second: Annotated[Path, typer.Argument(help="Another bundle's folder, or another root.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Explain two bundles side by side. Exit code 0: their graphs have the same architecture; 1: they differ."""
    require_groups("cpu", "service")
    from export.diff import compare_bundles
    from export.publish import resolve

    found = compare_bundles(resolve(first), resolve(second))
    typer.echo(json.dumps(found.document(), indent=2) if as_json else "\n".join(_lines(found, first, second)))
    if not found.same_fingerprint:
        raise typer.Exit(EXIT_DIFFERENT)


def _lines(found: Difference, first: Path, second: Path) -> list[str]:
    lines = [f"A: {first}", f"B: {second}", ""]
    for name, what in _VERDICTS.items():
        lines.append(f"{'same ' if getattr(found, name) else 'OTHER'}  {what}")
    for title, pairs in (
        ("", {**found.figures, **found.metrics}),
        ("operators whose number of nodes differs", found.operators),
        ("tensors that differ", found.tensors),
        ("training-only tensors that were removed", found.removed),
    ):
        lines += _table(title, pairs)
    return list(map(printable, lines))


def _table(title: str, pairs: Mapping[str, Iterable[Any]]) -> list[str]:
    if not pairs:
        return []
    rows = [("", "A", "B", "")]
    for name, values in pairs.items():
        left, right = map(_shown, values)
        rows.append((name, left, right, "" if left == right else "≠"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["", title] if title else [""]
    for name, left, right, mark in rows:
        lines.append(f"{name:<{widths[0]}}  {left:>{widths[1]}}  {right:>{widths[2]}}  {mark}".rstrip())
    return lines


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " × ".join(map(str, value)) or "scalar"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
