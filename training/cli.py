"""The ``dvib-train`` commands."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from training.build import load_model
from training.checkpoint import BEST, CheckpointInfo, load_checkpoint
from training.common.allocator import keep_freed_memory
from training.common.choices import Preset, Variant
from training.common.console import make_app
from training.common.errors import CheckpointError, ConfigError
from training.common.folders import write_atomically
from training.config import build_config
from training.data.fetch import DEFAULT_DATASET, fetch_default
from training.data.load import load_dataset
from training.device import memory_reported, resolve_device
from training.evaluation import DEFAULT_KS, METRICS, EvaluationSet, evaluate, evaluate_model, popularity_scorer
from training.listing import overview, settings
from training.reporting import ConsoleReporter
from training.resume import LAST, check_run_folder
from training.trainer import Trainer

app = make_app("Train multimodal recommenders, plain or with DVIB, and evaluate them.")
output = Console()
messages = Console(stderr=True)


DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="DVIB_DATA", help="Folder that holds DATASET/; without it, ml-100k is fetched and cached."
    ),
]
VariantOption = Annotated[Variant, typer.Option("--dvib", help="Plain, DVIB_c or DVIB_a.")]
PresetOption = Annotated[
    Preset,
    typer.Option(
        "--preset",
        help="The paper's method, with settings tuned on validation data or as published; or the authors' code's.",
    ),
]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the data set.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


def _configure() -> None:
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)


@app.command(
    epilog="Examples: `dvib-train fit --dvib adaptive --out runs/dvib`; "
    "`dvib-train fit --dataset tiktok --data-dir DATA --out runs/t --set training.learning_rate=0.01`; "
    "`dvib-train fit --out runs/dvib --dvib adaptive --resume`"
)
def fit(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    model: Annotated[str, typer.Option("--model", help="The recommender; `list` shows all.")] = "vbpr",
    dvib: VariantOption = "none",
    preset: PresetOption = "tuned",
    dataset: DatasetOption = DEFAULT_DATASET,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Most epochs to train.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the run.")] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or start it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew over an existing run.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set one key, for example dvib.gamma_d=0.5; `list MODEL` shows all."
        ),
    ] = None,
) -> None:
    """Train a model into a checkpoint, with early stopping on validation."""
    chosen_settings = list(overrides or [])
    chosen_settings += [f"training.epochs={epochs}"] if epochs is not None else []
    chosen_settings += [f"training.seed={seed}"] if seed is not None else []
    config = build_config(model_name=model, dataset=dataset, variant=dvib, preset=preset, overrides=chosen_settings)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    check_run_folder(out)
    if not (resume or overwrite) and (out / BEST).exists():
        raise CheckpointError(f"{out} already holds a run; pass --resume to continue it or --overwrite to train anew")
    _configure()
    chosen = resolve_device(device)
    data = load_dataset(dataset, data_dir, config.data)
    if overwrite:
        # The old checkpoint itself stays until the first better one takes its place.
        shutil.rmtree(out / LAST, ignore_errors=True)
    with memory_reported(), ConsoleReporter(messages, config) as reporter:
        trainer = Trainer(config, data, out, device=chosen, reporter=reporter)
        info = trainer.fit(resume=resume)
    scores = {config.model_name if dvib == "none" else f"{model} + DVIB {dvib}": info.metrics["test"]}
    output.print(
        f"{out}: best epoch {info.epoch} of {len(info.history)}, "
        f"validation {config.training.monitor} {info.metrics['valid'][config.training.monitor]:.4f}"
    )
    test = EvaluationSet.of(data, "test")
    scores["popularity"] = evaluate(popularity_scorer(data), test, data.n_items, DEFAULT_KS)
    output.print(_metrics_table("test", scores, (10, 20)))


@app.command("evaluate", epilog="Example: `dvib-train evaluate runs/dvib --split test --json reports/dvib.json`")
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint's folder.")],
    split: Annotated[Literal["valid", "test"], typer.Option("--split", help="Which interactions to predict.")] = "test",
    cutoffs: Annotated[list[int] | None, typer.Option("--k", min=1, help="Cut-off; repeat for several.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all metrics to this file.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a checkpoint by full ranking, beside the popularity ranking."""
    _configure()
    chosen = resolve_device(device)
    checkpoint = load_checkpoint(run)
    data = checkpoint.dataset
    beyond = [k for k in cutoffs or () if k > data.n_items]
    if beyond:
        raise ConfigError(f"--k {beyond[0]} exceeds the catalogue of {data.n_items} items")
    ks = tuple(sorted({k for k in cutoffs or DEFAULT_KS if k <= data.n_items}))
    prepared = EvaluationSet.of(data, split, chosen)
    model = load_model(checkpoint).to(chosen)
    scores = {
        _label(checkpoint.info): evaluate_model(model, prepared, data.n_items, ks),
        "popularity": evaluate(popularity_scorer(data, chosen), prepared, data.n_items, ks),
    }
    output.print(_metrics_table(split, scores, ks))
    if json_file is not None:
        document: dict[str, Any] = {
            "run": str(run),
            "split": split,
            "users": len(prepared.users),
            "metrics": scores[_label(checkpoint.info)],
            "popularity": scores["popularity"],
        }
        write_atomically(json_file, json.dumps(document, indent=2) + "\n")


@app.command(
    "list",
    epilog="Examples: `dvib-train list`; `dvib-train list vbpr`; "
    "`dvib-train list vbpr --dvib adaptive --preset reference --dataset tiktok`",
)
def list_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Show this model's settings.", show_default=False)
    ] = None,
    dvib: VariantOption = "none",
    preset: PresetOption = "tuned",
    dataset: DatasetOption = DEFAULT_DATASET,
) -> None:
    """Show models, variants, presets and data sets, or every setting of a MODEL with its meaning and source."""
    for table in overview() if model is None else [settings(model, dataset, dvib, preset)]:
        output.print(table)


@app.command()
def fetch() -> None:
    """Fetch the default data set (ml-100k) into the cache, checking its hashes."""
    _configure()
    output.print(f"ml-100k is in {fetch_default()}")


def _label(info: CheckpointInfo) -> str:
    variant = info.config.dvib.variant
    return info.config.model_name if variant == "none" else f"{info.config.model_name} + DVIB {variant}"


def _metrics_table(split: str, scores: dict[str, dict[str, float]], ks: tuple[int, ...]) -> Table:
    table = Table("", *METRICS, title=f"{split} split", title_justify="left")
    for k in ks:
        for label, metrics in scores.items():
            shown = (metrics.get(f"{name}@{k}") for name in METRICS)
            table.add_row(f"{label} @{k}", *("" if value is None else f"{value:.4f}" for value in shown))
    return table
