"""``dvib-bench training``, ``ranking`` and ``memory``: what things cost."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from benchmarks.commands.shared import Device, JsonFile, PresetOption, Shape, begin
from benchmarks.output import progress_bar, write_document
from training.common.allocator import keep_freed_memory
from training.common.choices import DvibVariant, Variant
from training.common.console import EXIT_VOID, require_groups

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-bench training --shape baby --model vbpr`; "
    "`dvib-bench training --shape sports --dvib constant --epochs 3 --json reports/training.json`; "
    "`dvib-bench training --shape baby --model mmgcn --profile`"
)
def training(
    shape: Shape = "baby",
    model: Annotated[str, typer.Option("--model", help="The recommender.")] = "vbpr",
    dvib: Annotated[DvibVariant, typer.Option("--dvib", help="DVIB_c or DVIB_a.")] = "adaptive",
    preset: PresetOption = "paper",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Timed epochs of each arm.")] = 8,
    profile: Annotated[bool, typer.Option("--profile", help="Also show where the time of a step goes.")] = False,
    device: Device = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Seconds per epoch without DVIB, with it, and, for VBPR, BM3 and FREEDOM, of a loop as it is usually written."""
    require_groups("training")
    keep_freed_memory()
    if profile:
        # The profiler says on stderr when it starts and stops, unless it is told not to before torch is loaded.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from benchmarks.training_speed import measure

    environment = begin(json_file)
    with progress_bar(epochs + 1, "epochs") as bar:
        result = measure(
            shape,
            model,
            variant=dvib,
            preset=preset,
            epochs=epochs,
            device=device,
            profiled=profile,
            on_epoch=bar.advance,
        )
    labels = {"none": model, "dvib": f"{model} + DVIB {dvib}", "reference_loop": "reference loop"}
    for name, seconds in result["seconds_per_epoch"].items():
        typer.echo(f"{labels[name]:<24} {seconds:8.3f} s per epoch")
    typer.echo(f"with DVIB ÷ without:       {result['ratio_dvib']:.2f}")
    if result["ratio_reference"] is not None:
        typer.echo(f"reference loop ÷ without:  {result['ratio_reference']:.2f}")
    if result["profile"] is not None:
        from benchmarks.training_profile import report as profile_report

        for line in profile_report(result["profile"]):
            typer.echo(line)
    write_document(json_file, {"benchmark": "training", **result, "environment": environment})


@app.command(
    epilog="Examples: `dvib-bench ranking --shape baby`; "
    "`dvib-bench ranking --shape sports --rounds 3 --json reports/ranking.json`"
)
def ranking(
    shape: Shape = "baby",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed evaluations of each side.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Seconds for the full ranking of one split beside a plain way to do it. Exit code 3: they do not agree."""
    require_groups("training")
    keep_freed_memory()
    from benchmarks.ranking_speed import DisagreementError, measure

    environment = begin(json_file)
    try:
        with progress_bar(rounds + 1, "rounds") as bar:
            result = measure(shape, rounds=rounds, on_round=bar.advance)
    except DisagreementError as error:
        typer.echo(f"dvib-bench: {error}", err=True)
        raise typer.Exit(EXIT_VOID) from error
    typer.echo(f"{result['users']} users, {result['items']} items, lists of 50, all metrics")
    for name, label in (("ours", "training.evaluation"), ("reference", "plain reference")):
        typer.echo(f"{label:<24} {result['seconds'][name]:8.3f} s")
    typer.echo(f"ours ÷ reference:          {result['ratio']:.2f}")
    agreed = ", ".join(f"{name} {result['metrics'][name]:.4f}" for name in ("recall@20", "ndcg@20"))
    typer.echo(f"both give {agreed}")
    write_document(json_file, {"benchmark": "ranking", **result, "environment": environment})


@app.command(
    epilog="Examples: `dvib-bench memory --shape clothing --model freedom`; "
    "`dvib-bench memory --shape clothing --model freedom --dvib adaptive --steps 0 --json reports/memory.json`"
)
def memory(
    shape: Shape = "clothing",
    model: Annotated[str, typer.Option("--model", help="The recommender.")] = "freedom",
    dvib: Annotated[Variant, typer.Option("--dvib", help="Plain, DVIB_c or DVIB_a.")] = "none",
    preset: PresetOption = "paper",
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Training steps; 0 for a whole epoch that saves its checkpoints.")
    ] = 5,
    json_file: JsonFile = None,
) -> None:
    """Peak memory of a run on the CPU, in a process of its own: data, model, some steps, one validation ranking."""
    require_groups("training")
    from benchmarks.memory import measure, report

    environment = begin(json_file)
    with progress_bar(1, f"{shape}, {model}") as bar:
        result = measure(shape, model, dvib, preset, steps)
        bar.advance()
    for line in report(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "memory", **result, "environment": environment})
