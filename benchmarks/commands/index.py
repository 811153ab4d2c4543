"""``dvib-bench index``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import check_json_path, progress_bar, write_document
from training.common.console import EXIT_DIFFERENT, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench index --size 100000`; "
    "`dvib-bench index --size 1000000 --json reports/index.json --plot reports/index`"
)
def index(
    size: Annotated[
        list[int] | None, typer.Option("--size", min=1000, help="Items; repeat for several. Default: 100000, 1000000.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="hnsw, ivf, ...; repeat for several. All else.")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", min=10, help="Queries of each kind.")] = 300,
    min_recall: Annotated[float, typer.Option("--min-recall", min=0, max=1, help="Recall@10 that is wanted.")] = 0.99,
    min_speedup: Annotated[float, typer.Option("--min-speedup", min=0, help="Wanted multiple of flat's speed.")] = 5.0,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="STEM", help="Write STEM.png and STEM.svg as well.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Recall@10 against queries/s of each kind of index, beside flat. Exit code 1: none is good at the largest size."""
    require_groups("training", "cpu")
    from benchmarks.index_plot import plot as draw_plot
    from benchmarks.index_speed import KINDS, Bar, holds, measure, report

    sizes = sorted(set(size or (100_000, 1_000_000)))
    kinds = tuple(kind or KINDS)
    bar = Bar(min_recall, min_speedup)
    check_json_path(plot)
    environment = begin(json_file)
    runs = []
    with progress_bar(len(sizes), "indexes") as shown:
        for count in sizes:
            runs.append(measure(count, queries, kinds, bar, shown.describe))
            shown.advance()
    for run in runs:
        for line in report(run, bar):
            typer.echo(line)
    document = {
        "benchmark": "index",
        "bar": {"recall": bar.recall, "speedup": bar.speedup, "holds": holds(runs[-1], bar)},
        "runs": runs,
        "environment": environment,
    }
    write_document(json_file, document)
    if plot is not None:
        typer.echo("drawn: " + ", ".join(str(path) for path in draw_plot(runs, bar, plot)))
    if not holds(runs[-1], bar):
        raise typer.Exit(EXIT_DIFFERENT)
