"""``dvib-bench quality``: ranking metrics of models, plain and with DVIB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import (
    DataDir,
    DatasetName,
    Device,
    Models,
    PresetOption,
    Settings,
    Variants,
    begin,
    chosen_variants,
)
from benchmarks.output import progress_bar
from training.common.allocator import keep_freed_memory
from training.common.console import EXIT_DIFFERENT, require_groups

EPILOG = (
    "Examples: `dvib-bench quality --dataset ml-100k`; "
    "`dvib-bench quality --dataset tiktok --data-dir DATA --model all --json reports/tiktok.json` "
    "(after a kill, the same command goes on with the runs that are missing); "
    "`dvib-bench quality --dataset baby --data-dir DATA --model selfcf --model layergcn --paper`"
)


app = typer.Typer()


@app.command(epilog=EPILOG)
def quality(
    dataset: DatasetName = "ml-100k",
    data_dir: DataDir = None,
    model: Models = None,
    dvib: Variants = None,
    preset: PresetOption = "tuned",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each line, with seeds 0, 1, ...")] = 3,
    metrics: Annotated[str, typer.Option("--metrics", help="Columns, separated by commas.")] = (
        "recall@20,ndcg@20,recall@10,ndcg@10"
    ),
    paper: Annotated[bool, typer.Option("--paper", help="Show the paper's Table 5 beside our figures.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="First choose settings on the validation split.")] = False,
    settings: Settings = None,
    device: Device = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Keep every run in this file as soon as it is over; runs in it are not repeated."),
    ] = None,
) -> None:
    """Test metrics of models, plain and with DVIB, beside popularity and item-kNN. Exit code 1: a run failed."""
    require_groups("training")
    keep_freed_memory()
    from benchmarks import quality as work
    from benchmarks.grids import trials
    from benchmarks.ledger import Ledger
    from benchmarks.published import beside_paper, check_published
    from benchmarks.quality_report import Lines, make_rows, table
    from training.device import resolve_device

    lines = tuple(
        work.Combination(name, variant, tuple(settings or ()))
        for name in work.chosen_models(model or ["vbpr"])
        for variant in chosen_variants(dvib)
    )
    columns = work.chosen_metrics(metrics)
    if paper:
        check_published(dataset)
    study = work.Study(dataset, data_dir, preset, lines, tuple(range(seeds)), resolve_device(device))
    environment = begin(json_file)
    ledger = Ledger(json_file, "quality")
    total = len(lines) * seeds + (sum(len(trials(line.model, line.variant)) for line in lines) if tune else 0)
    with progress_bar(total, "popularity and item-kNN") as bar:
        comparison = work.Comparison(study, ledger, Lines(bar, columns))
        baselines = comparison.baselines()
        columns = tuple(name for name in columns if name in baselines["popularity"])
        tuned = comparison.tune() if tune else None
        runs = comparison.run(tuned)
    for label, entry in (tuned or {}).items():
        typer.echo(f"{label}: of {len(entry['trials'])} trials on validation, chosen {' '.join(entry['best'])}")
    rows = make_rows(lines, runs, baselines)
    title = f"{dataset}, preset {preset}, test split" + (f", mean ± sd of {seeds} seeds" if seeds > 1 else ", seed 0")
    for line in table(title, rows, columns):
        typer.echo(line)
    if paper:
        for line in beside_paper(dataset, rows):
            typer.echo(line)
    ledger.write(
        dataset=dataset, preset=preset, seeds=list(range(seeds)), rows=rows, tuning=tuned, environment=environment
    )
    if any(row.get("failed") for row in rows):
        raise typer.Exit(EXIT_DIFFERENT)
