"""``dvib-bench matrix``: every model with every variant, from training to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.shared import (
    DataDir,
    DatasetName,
    Device,
    JsonFile,
    Models,
    PresetOption,
    Settings,
    Variants,
    begin,
    chosen_variants,
)
from benchmarks.output import progress_bar, write_document
from training.common.allocator import keep_freed_memory
from training.common.console import EXIT_DIFFERENT, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench matrix --dataset ml-100k`; "
    "`dvib-bench matrix --dataset tiktok --data-dir DATA --model bm3 --model freedom --json reports/matrix.json`"
)
def matrix(
    dataset: DatasetName = "ml-100k",
    data_dir: DataDir = None,
    model: Models = None,
    dvib: Variants = None,
    preset: PresetOption = "tuned",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of each training.")] = 2,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Keep the trained runs here, and take those that are here already.")
    ] = None,
    settings: Settings = None,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Train, export, verify and serve every model with every variant, and ask each once. Exit code 1: one failed."""
    require_groups("training", "export", "service", "cpu")
    keep_freed_memory()
    from benchmarks import matrix as work
    from benchmarks.quality import Combination, Study, chosen_models
    from training.device import resolve_device

    overrides = (*(settings or ()), f"training.epochs={epochs}")
    lines = tuple(
        Combination(name, variant, overrides)
        for name in chosen_models(model or ["all"])
        for variant in chosen_variants(dvib)
    )
    study = Study(dataset, data_dir, preset, lines, device=resolve_device(device))
    study.check()
    environment = begin(json_file)
    rows = []
    with progress_bar(len(lines), "rows") as bar:
        for row in work.run_matrix(study, runs, bar.describe):
            rows.append(row)
            bar.line(f"{row.model} {row.variant}: {f'FAILED in {row.error}' if row.error else 'answered'}")
            bar.advance()
            document = {
                "benchmark": "matrix",
                "dataset": dataset,
                "preset": preset,
                "epochs": epochs,
                "device": str(study.device),
                "export_and_verify_seconds": work.seconds_in_all(rows),
                "rows": [row.document() for row in rows],
                "environment": environment,
            }
            write_document(json_file, document)
    for text in work.table(rows):
        typer.echo(text)
    failed = sum(bool(row.error) for row in rows)
    typer.echo(f"{len(rows) - failed} of {len(rows)} combinations went all the way on {dataset}, preset {preset}")
    typer.echo(f"export and verification of all: {work.seconds_in_all(rows):.0f} s")
    if failed:
        raise typer.Exit(EXIT_DIFFERENT)
