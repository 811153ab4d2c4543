"""``dvib-bench report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.output import command_line
from training.common.console import require_groups

app = typer.Typer()


@app.command(epilog="Examples: `dvib-bench report reports`; `dvib-bench report reports --out docs/latency`")
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Holds latency.json, stages.json, load.json, growth.json, peers.json, all-users.json, or some.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the report goes. Default: beside the documents.")
    ] = None,
) -> None:
    """Put the documents of the latency benchmarks together: report.md with its plots as PNG and SVG."""
    require_groups("training", "service", "cpu")
    from benchmarks.report.write import write_report

    for path in write_report(folder, out or folder, command_line()):
        typer.echo(str(path))
