"""The ``dvib-bench`` commands. Each imports its heavy parts only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.environment import describe_environment, summary
from benchmarks.output import check_json_path, progress_bar, write_document
from training.common.allocator import keep_freed_memory
from training.common.choices import DvibVariant, Preset
from training.common.console import EXIT_VOID, make_app, require_groups

app = make_app("Measure speed, ranking quality and latency, each beside what it should be compared with, in one run.")

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write figures and raw samples to this file.")]
Shape = Annotated[str, typer.Option("--shape", help="Counts and widths of the synthetic data: baby, sports, ...")]
PresetOption = Annotated[Preset, typer.Option("--preset", help="The published mathematics, or the authors' code's.")]


def _begin(json_file: Path | None) -> dict[str, Any]:
    """Check where the figures go, and say what they are measured on."""
    check_json_path(json_file)
    environment = describe_environment()
    typer.echo(summary(environment))
    return environment


@app.command(
    epilog="Examples: `dvib-bench training --shape baby --model vbpr`; "
    "`dvib-bench training --shape sports --dvib constant --epochs 3 --json reports/training.json`"
)
def training(
    shape: Shape = "baby",
    model: Annotated[str, typer.Option("--model", help="The recommender.")] = "vbpr",
    dvib: Annotated[DvibVariant, typer.Option("--dvib", help="DVIB_c or DVIB_a.")] = "adaptive",
    preset: PresetOption = "paper",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Timed epochs of each arm.")] = 8,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Seconds per epoch without DVIB, with it, and of a plain loop that projects every item for every batch."""
    require_groups("training")
    keep_freed_memory()
    from benchmarks.training_speed import measure

    environment = _begin(json_file)
    with progress_bar(epochs + 1, "epochs") as bar:
        result = measure(
            shape,
            model,
            variant=dvib,
            preset=preset,
            epochs=epochs,
            device=device,
            on_epoch=bar.advance,
        )
    labels = {"none": model, "dvib": f"{model} + DVIB {dvib}", "reference_loop": "reference loop"}
    for name, seconds in result["seconds_per_epoch"].items():
        typer.echo(f"{labels[name]:<24} {seconds:8.3f} s per epoch")
    typer.echo(f"with DVIB ÷ without:       {result['ratio_dvib']:.2f}")
    if result["ratio_reference"] is not None:
        typer.echo(f"reference loop ÷ without:  {result['ratio_reference']:.2f}")
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

    environment = _begin(json_file)
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
    epilog="Examples: `dvib-bench quality --dataset ml-100k`; "
    "`dvib-bench quality --dataset tiktok --data-dir DATA --tune --json reports/quality.json`"
)
def quality(
    dataset: Annotated[str, typer.Option("--dataset", help="Name of the data set.")] = "ml-100k",
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", envvar="DVIB_DATA", help="Folder that holds DATASET/; without it, ml-100k."),
    ] = None,
    preset: PresetOption = "paper",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each variant.")] = 3,
    tune: Annotated[bool, typer.Option("--tune", help="First choose settings on the validation split.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key in every run.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Test metrics of popularity, the plain model and both DVIB variants: mean ± sd over seeds."""
    require_groups("training")
    keep_freed_memory()
    from benchmarks import quality as work
    from benchmarks.quality_report import Lines, table

    environment = _begin(json_file)
    tuning: dict[str, Any] | None = None
    total = len(work.VARIANTS) * seeds + (sum(map(len, work.GRIDS.values())) if tune else 0)
    with progress_bar(total, "runs") as bar:
        lines = Lines(bar)
        if tune:
            tuning = work.tune(dataset, data_dir, preset, overrides=settings or (), on_trial=lines.trial)
        result = work.compare(
            dataset,
            data_dir,
            preset,
            range(seeds),
            {name: entry["best"] for name, entry in tuning.items()} if tuning else None,
            overrides=settings or (),
            on_run=lines.run,
        )
    for name, entry in (tuning or {}).items():
        typer.echo(f"{name}: of {len(entry['trials'])} trials on validation, chosen {' '.join(entry['best'])}")
    for line in table(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "quality", **result, "tuning": tuning, "environment": environment})


@app.command(
    epilog="Examples: `dvib-bench latency --baseline bundles/baseline --dvib bundles/dvib`; "
    "`dvib-bench latency --baseline bundles/baseline --dvib bundles/baseline --rounds 40 --json reports/aa.json` "
    "(the same bundle twice: how far apart equal arms are)"
)
def latency(
    baseline: Annotated[Path, typer.Option("--baseline", help="The plain model's bundle.")],
    dvib: Annotated[Path, typer.Option("--dvib", help="The DVIB model's bundle.")],
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Rounds at each level: the bootstrap's unit.")] = 20,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Timed calls of each bundle in a round.")] = 200,
    users_per_call: Annotated[int, typer.Option("--users-per-call", min=1, help="Users of one engine call.")] = 1,
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="Items per answer.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws users, order and resamples.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Latency of two bundles, interleaved: the graph, what a request runs, and HTTP. Gives figures, no verdict."""
    require_groups("service", "cpu")
    from benchmarks.latency import LEVELS, Options, measure
    from benchmarks.latency_report import report

    environment = _begin(json_file)
    options = Options(rounds=rounds, calls=calls, users_per_call=users_per_call, k=k, seed=seed)
    with progress_bar(LEVELS * rounds, "rounds") as bar:

        def show(level: str) -> None:
            bar.describe(level)
            bar.advance()

        result = measure(baseline, dvib, options, show)
    for line in report(result):
        typer.echo(line)
    write_document(json_file, {"benchmark": "latency", **result, "environment": environment})
