"""``dvib-export verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.common.console import EXIT_DIFFERENT, require_groups
from training.common.errors import printable

_MARKS = {True: "ok  ", False: "FAIL", None: "skip"}

app = typer.Typer()


@app.command(epilog="Example: `dvib-export verify bundles/dvib --against bundles/baseline`")
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a root of published versions.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="Another bundle: blanked, both graphs must be the same bytes.")
    ] = None,
    trust_torchscript: Annotated[
        bool, typer.Option("--trust-torchscript", help="Load model.ts, which can run code, and compare its scores.")
    ] = False,
    trust_program: Annotated[
        bool, typer.Option("--trust-program", help="Load model.pt2, which can run code, and compare its scores.")
    ] = False,
) -> None:
    """Re-check a bundle from its files: hashes, graph, certificate, parity over every user. Exit code 1: different."""
    require_groups("cpu", "service")
    from export.bundle import PROGRAM, TORCHSCRIPT
    from export.publish import resolve
    from export.verify import verify_bundle

    wanted = [name for name, trust in ((TORCHSCRIPT, trust_torchscript), (PROGRAM, trust_program)) if trust]
    loaders = {}
    if wanted:
        require_groups("training", "export")
        from export.trusted import LOADERS

        loaders = {name: LOADERS[name] for name in wanted}
    checks = verify_bundle(resolve(bundle), against and resolve(against), loaders)
    for check in checks:
        # The evidence may be a stranger's words.
        typer.echo(f"{_MARKS[check.passed]}  {check.name}: {printable(check.detail)}")
    # What was not looked at, and must not be, is no difference.
    if any(check.passed is False for check in checks):
        raise typer.Exit(EXIT_DIFFERENT)
