"""``dvib-bench growth``."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import JsonFile, begin
from benchmarks.output import check_json_path, progress_bar, write_document
from training.common.console import require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench growth --plot reports/growth`; "
    "`dvib-bench growth --full --work bundles/growth --json reports/growth.json --plot reports/growth`; "
    "`dvib-bench growth --items 1000000 --items 10000000 --large-index IVF4096,SQ8`"
)
def growth(
    items: Annotated[
        list[int] | None,
        typer.Option("--items", min=1000, help="Catalogue; repeat for several. Default: 7000, 100000, 1000000."),
    ] = None,
    large_index: Annotated[
        str, typer.Option("--large-index", help="The index of catalogues of more than a million items.")
    ] = "IVF4096,SQ8",
    full: Annotated[
        bool,
        typer.Option("--full", help="More sizes, up to ten million, both indexes side by side, up to a million users."),
    ] = False,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Timed calls of each point.")] = 300,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bundles, and of what they are asked.")] = 0,
    work: Annotated[
        Path | None, typer.Option("--work", help="Keep the bundles in this folder, and take those that are there.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="STEM", help="Write STEM.png and STEM.svg as well.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Latency and memory against catalogue size, users, answer length and seen items, on bundles of made-up vectors."""
    require_groups("training", "service", "cpu")
    from benchmarks.growth.measure import FULL_SIZES, SIZES, bundles_of, measure, points, report

    check_json_path(plot)
    environment = begin(json_file)
    sizes = sorted(set(items or (FULL_SIZES if full else SIZES)))
    wanted = points(sizes, large_index, full=full, seed=seed)
    place = tempfile.TemporaryDirectory(prefix="dvib-growth-") if work is None else nullcontext(str(work))
    with place as folder, progress_bar(len(bundles_of(wanted)), "bundles") as bar:
        result = measure(wanted, Path(folder), calls=calls, seed=seed, on_step=bar.describe, on_bundle=bar.advance)
    for line in report(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "growth", **result, "environment": environment})
    if plot is not None:
        from benchmarks.growth.plot import plot as draw_plot

        typer.echo("drawn: " + ", ".join(str(path) for path in draw_plot(result, plot)))
