"""``dvib-train plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.shared import output
from training.common.console import EXIT_BAD_INPUT, complain
from training.common.errors import DvibError
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
    """Draw the curves of runs from their logs: RUN/curves.png and RUN/curves.svg. What is no run is told at the end."""
    refused: list[DvibError] = []
    for run in runs:
        try:
            paths = draw_curves(run, metric)
        except DvibError as error:
            refused.append(error)
            continue
        for path in paths:
            output.print(str(path), highlight=False, soft_wrap=True, markup=False)
    for refusal in refused:
        complain("dvib-train", str(refusal))
    if refused:
        raise typer.Exit(EXIT_BAD_INPUT)
