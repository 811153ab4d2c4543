"""``dvib-bench peers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import progress_bar, write_document
from training.common.console import EXIT_DIFFERENT, EXIT_VOID, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench peers bundles/dvib --check`; "
    "`dvib-bench peers bundles/dvib --peer numpy --peer torch --rounds 20 --json reports/peers.json`"
)
def peers(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a root of published versions.")],
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="NAME", help="numpy, torch, implicit or cornac; repeat for several. Else all."),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per answer.")] = 10,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Processes: the bootstrap's unit.")] = 10,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Timed calls of everybody in a round.")] = 200,
    compared: Annotated[int, typer.Option("--compared", min=1, help="Users whose answers are compared.")] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws users, orders and resamples.")] = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit code 1: a peer is faster. 3: a peer's answers differ, it is another job."),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time of one answer beside NumPy, PyTorch, implicit and Cornac, with the same vectors, users and single thread."""
    require_groups("training", "service", "cpu")
    from benchmarks.peer_services import PEERS
    from benchmarks.peers import Options, differing, faster, measure, report

    environment = begin(json_file)
    options = Options(rounds=rounds, calls=calls, k=k, compared=compared, seed=seed)
    with progress_bar(rounds, "rounds") as bar:
        result = measure(bundle, list(dict.fromkeys(peer or PEERS)), options, bar.advance)
    for line in report(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "peers", **result, "environment": environment})
    if check and differing(result):
        raise typer.Exit(EXIT_VOID)
    if check and faster(result):
        raise typer.Exit(EXIT_DIFFERENT)
