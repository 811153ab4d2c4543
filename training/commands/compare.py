"""``dvib-train compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from training.commands.shared import Device, configure, messages, output, show
from training.common.folders import write_atomically
from training.device import resolve_device
from training.runs.compare import DEFAULT_METRICS, Comparison, JudgedSplit, chosen_metrics, compare
from training.runs.found import Run, read_runs
from training.runs.paired import CONFIDENCE
from training.runs.tables import as_json, comma_separated, markdown, terminal

app = typer.Typer()
DEFAULT_COLUMNS = ",".join(DEFAULT_METRICS)

Metrics = Annotated[str, typer.Option("--metrics", help="Columns, separated by commas: recall, ndcg, precision, …@k.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the tables to this file.")]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write a row for each line and metric to this file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")]


@app.command(
    "compare",
    epilog="Examples: `dvib-train compare runs/plain-0 runs/plain-1 runs/dvib-0 runs/dvib-1`; "
    "`dvib-train compare runs --baseline vbpr --metrics recall@20,ndcg@20 --markdown reports/vbpr.md`; "
    "`dvib-train compare runs --split valid --csv reports/valid.csv`",
)
def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders with runs below them.")],
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="Line, or one of its runs, to test the others against; the plain one of the same model otherwise.",
        ),
    ] = None,
    metrics: Metrics = DEFAULT_COLUMNS,
    split: Annotated[JudgedSplit, typer.Option("--split", help="Which interactions to predict.")] = "test",
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.9999, help="Of the effects' intervals.")
    ] = CONFIDENCE,
    markdown_file: Markdown = None,
    csv_file: Csv = None,
    json_file: Json = None,
    device: Device = "auto",
) -> None:
    """Compare finished runs: mean ± deviation over seeds, and paired tests over users against a baseline."""
    configure()
    chosen = chosen_metrics(metrics)
    found = read_runs(runs)
    comparison = watched_compare(found, baseline, chosen, split, confidence, device)
    for table in terminal(comparison):
        show(output, table)
    for path, text in ((markdown_file, markdown), (csv_file, comma_separated), (json_file, as_json)):
        if path is not None:
            write_atomically(path, text(comparison))


def watched_compare(
    runs: list[Run],
    baseline: str | None,
    metrics: tuple[str, ...],
    split: JudgedSplit,
    confidence: float,
    device: str,
) -> Comparison:
    """Compare with a bar where somebody is watching."""
    where = resolve_device(device)
    with Progress(console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("ranking", total=len(runs))

        def told(run: Run) -> None:
            bar.update(task, advance=1, description=f"ranking {run.folder}")

        return compare(
            runs,
            baseline=baseline,
            metrics=metrics,
            split=split,
            confidence=confidence,
            device=where,
            on_run=told,
        )
