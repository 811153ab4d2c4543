"""``dvib-bench load``: what the service costs over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import EXIT_DIFFERENT, EXIT_VOID, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench load bundles/baseline --check`; "
    "`dvib-bench load bundles/baseline --dvib bundles/dvib --rounds 20 --json reports/load.json`"
)
def load(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle, or its root of published versions.")],
    dvib: Annotated[
        list[Path] | None, typer.Option("--dvib", help="A bundle served beside it; repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Rounds: the bootstrap's unit.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, max=600, help="Length of each slice.")] = 0.5,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per reply.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws users, arrivals, order and resamples.")] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 where a bar is missed, 3 where the client set the pace.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Throughput, latency and CPU of /recommend beside a constant reply of the same framework and the bare engine.

    Closed loops of 1, 8 and 32 requests at a time, open loops at shares of the saturation with latency counted from
    when a request was due. Exit code 1: a reply was wrong.
    """
    require_groups("service", "cpu")
    from benchmarks.load.lines import bars, busy_client, document, errors, report
    from benchmarks.load.measure import Options, measure, slices_of_a_round

    environment = begin(json_file)
    options = Options(rounds=rounds, seconds=seconds, k=k, seed=seed)
    bundles = tuple(dvib or ())
    with progress_bar(rounds * slices_of_a_round(len(bundles) + 1) + 1, "starting servers") as bar:

        def show(text: str) -> None:
            bar.describe(text)
            bar.advance()

        run = measure(bundle, bundles, options, show)
    for line in report(run):
        typer.echo(line)
    write_document(json_file, {"benchmark": "load", **document(run), "environment": environment})
    if errors(run):
        raise typer.Exit(EXIT_DIFFERENT)
    if check and busy_client(run):
        raise typer.Exit(EXIT_VOID)
    if check and any(found.met is False for found in bars(run)):
        raise typer.Exit(EXIT_DIFFERENT)
