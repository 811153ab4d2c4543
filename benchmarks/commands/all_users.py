"""``dvib-bench all-users``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import EXIT_VOID, require_groups

app = typer.Typer()


@app.command(
    "all-users",
    epilog="Examples: `dvib-bench all-users --shape sports --check`; "
    "`dvib-bench all-users --bundle bundles/dvib --k 10 --json reports/all-users.json`",
)
def all_users(
    shape: Annotated[str, typer.Option("--shape", help="Counts of a made-up bundle: baby, sports, ...")] = "sports",
    bundle: Annotated[Path | None, typer.Option("--bundle", help="A bundle or a root, instead of a shape.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Items per user.")] = 50,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Rounds: the bootstrap's unit.")] = 7,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the command and of the product.")] = 2,
    max_ratio: Annotated[
        float, typer.Option("--max-ratio", min=0, help="The bar: the whole command in bare products.")
    ] = 3.5,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if the bar is missed, 4 if it is inside the interval.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws order and resamples.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Lists for all users to Parquet beside a bare float32 product of that shape. Exit code 3: the lists are wrong."""
    require_groups("training", "service", "cpu")
    from benchmarks.all_users import Options, WrongListsError, exit_code, measure, report

    environment = begin(json_file)
    options = Options(k=k, rounds=rounds, threads=threads, seed=seed)
    with progress_bar(rounds + 1, "bundle") as bar:

        def show(step: str) -> None:
            bar.describe(step)
            bar.advance()

        try:
            result = measure(shape, bundle, options, show)
        except WrongListsError as error:
            typer.echo(f"dvib-bench: {error}", err=True)
            raise typer.Exit(EXIT_VOID) from error
    for line in report(result, max_ratio):
        typer.echo(line)
    code = exit_code(result, max_ratio)
    document = {
        "benchmark": "all-users",
        **result,
        "bar": {"max_ratio": max_ratio, "code": code},
        "environment": environment,
    }
    write_document(json_file, document)
    if check and code:
        raise typer.Exit(code)
