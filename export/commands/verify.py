"""``dvib-export verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.common.console import EXIT_DIFFERENT, require_groups

_MARKS = {True: "ok  ", False: "FAIL", None: "skip"}

app = typer.Typer()


@app.command(epilog="Example: `dvib-export verify bundles/dvib --against bundles/baseline`")
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Another bundle: blanked, both graphs must be the same bytes.")
    ] = None,
) -> None:
    """Re-check a bundle from its files: hashes, graph, certificate, parity over every user. Exit code 1: different."""
    require_groups("cpu", "service")
    from export.verify import verify_bundle

    checks = verify_bundle(bundle, against)
    for check in checks:
        typer.echo(f"{_MARKS[check.passed]}  {check.name}: {check.detail}")
    if not all(check.passed for check in checks):
        raise typer.Exit(EXIT_DIFFERENT)
