"""``dvib-train plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.shared import output
from training.curves import draw_curves

app = typer.Typer()


@app.command(epilog="Examples: `dvib-train plot runs/dvib`; `dvib-train plot runs/* --metric ndcg@20`")
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, also one that is still training.")],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="Validation metric to show; recall@20 otherwise, or what else the log begins with."
        ),
    ] = None,
) -> None:
    """Draw the curves of runs from their logs: RUN/curves.png and RUN/curves.svg."""
    for run in runs:
        for path in draw_curves(run, metric):
            output.print(str(path), highlight=False, soft_wrap=True, markup=False)
