"""``dvib-train fit``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from training.checkpoint import BEST
from training.commands.shared import (
    ConfigFile,
    DataDir,
    Device,
    MaybeDataset,
    MaybeModel,
    MaybePreset,
    MaybeVariant,
    Overrides,
    configure,
    label,
    messages,
    metrics_table,
    output,
)
from training.common.errors import CheckpointError, ConfigError
from training.curves import draw_curves
from training.data.load import load_dataset
from training.device import memory_reported, resolve_device
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate, popularity_scorer
from training.reporting import ConsoleReporter, Reporter
from training.resume import check_run_folder
from training.runs.config_file import Choices, config_from
from training.tensorboard import FOLDER, TensorBoardReporter
from training.trainer import Trainer

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-train fit --dvib adaptive --out runs/dvib`; "
    "`dvib-train fit --dataset tiktok --data-dir DATA --out runs/t --set training.learning_rate=0.01`; "
    "`dvib-train fit --out runs/dvib --dvib adaptive --resume`; "
    "`dvib-train fit --config runs/dvib/best/checkpoint.json --seed 1 --out runs/dvib-1`"
)
def fit(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    config_file: ConfigFile = None,
    model: MaybeModel = None,
    dvib: MaybeVariant = None,
    preset: MaybePreset = None,
    dataset: MaybeDataset = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Most epochs to train.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the run.")] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or start it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew over an existing run.")] = False,
    transforms: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            metavar="SPEC",
            help="Put noise or redundancy into the data before training; repeat for several: noise:CHI[:MODALITY], "
            "relative-noise:CHI[:MODALITY], visual-redundancy[:COLUMNS[:MODALITY]], text-redundancy[:SHARE[:LENGTH]].",
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write every epoch's numbers for TensorBoard too, into OUT/tensorboard."),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model into a checkpoint, with early stopping on validation."""
    chosen_settings = list(overrides or [])
    chosen_settings += [f"training.epochs={epochs}"] if epochs is not None else []
    chosen_settings += [f"training.seed={seed}"] if seed is not None else []
    chosen_settings += [f"data.transforms={json.dumps(transforms)}"] if transforms else []
    config = config_from(Choices(model, dvib, preset, dataset), config_file, chosen_settings)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    check_run_folder(out)
    if not (resume or overwrite) and (out / BEST).exists():
        raise CheckpointError(f"{out} already holds a run; pass --resume to continue it or --overwrite to train anew")
    configure()
    chosen = resolve_device(device)
    data = load_dataset(config.dataset, data_dir, config.data)
    with memory_reported(), ExitStack() as stack:
        reporter: Reporter = stack.enter_context(ConsoleReporter(messages, config))
        if tensorboard:
            reporter = stack.enter_context(TensorBoardReporter(out / FOLDER, reporter))
        trainer = Trainer(config, data, out, device=chosen, reporter=reporter)
        info = trainer.fit(resume=resume)
    curves = draw_curves(out, config.training.monitor)
    scores = {label(info): info.metrics["test"]}
    output.print(
        f"{out}: best epoch {info.epoch} of {len(info.history)}, "
        f"validation {config.training.monitor} {info.metrics['valid'][config.training.monitor]:.4f}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    output.print(f"curves: {', '.join(map(str, curves))}", highlight=False, soft_wrap=True, markup=False)
    test = EvaluationSet.of(data, "test")
    scores["popularity"] = evaluate(popularity_scorer(data), test, data.n_items, DEFAULT_KS)
    output.print(metrics_table("test", scores, (10, 20)))
