"""``dvib-bench stages``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import EXIT_DIFFERENT, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench stages bundles/dvib --check`; "
    "`dvib-bench stages bundles/dvib --users-per-call 32 --json reports/stages.json`"
)
def stages(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a root of published versions.")],
    users_per_call: Annotated[int, typer.Option("--users-per-call", min=1, help="Users of one call.")] = 1,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per answer.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Processes: the bootstrap's unit.")] = 20,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Timed calls of each stage in a round.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws users, turns and resamples.")] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1: the engine takes more times its floors than the bar allows.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Where the time of a request goes, and the engine beside its floors: an empty call and one pass over the items."""
    require_groups("training", "service", "cpu")
    from benchmarks.stages import Options, measure, report

    environment = begin(json_file)
    options = Options(rounds=rounds, calls=calls, users_per_call=users_per_call, k=k, seed=seed)
    with progress_bar(rounds, "rounds") as bar:
        result = measure(bundle, options, bar.advance)
    for line in report(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "stages", **result, "environment": environment})
    if check and result["floors"]["holds"] is False:
        raise typer.Exit(EXIT_DIFFERENT)
