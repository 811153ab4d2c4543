"""``dvib-train evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from training.build import load_model
from training.checkpoint import load_checkpoint
from training.commands.shared import Device, configure, label, messages, metrics_table, output
from training.common.errors import ConfigError
from training.common.folders import write_atomically
from training.data.transforms import keeps_widths, with_transformed_features
from training.device import resolve_device
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate, evaluate_model, popularity_scorer
from training.models.base import Recommender

app = typer.Typer()


@app.command("evaluate", epilog="Example: `dvib-train evaluate runs/dvib --split test --json reports/dvib.json`")
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint's folder.")],
    split: Annotated[Literal["valid", "test"], typer.Option("--split", help="Which interactions to predict.")] = "test",
    cutoffs: Annotated[list[int] | None, typer.Option("--k", min=1, help="Cut-off; repeat for several.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all metrics to this file.")] = None,
    device: Device = "auto",
    transforms: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            metavar="SPEC",
            help="Show the trained model noisy features: noise:CHI[:MODALITY] or relative-noise:CHI[:MODALITY].",
        ),
    ] = None,
    transform_seed: Annotated[int, typer.Option("--transform-seed", min=0, help="Seed of that noise.")] = 0,
) -> None:
    """Evaluate a checkpoint by full ranking, beside the popularity ranking."""
    configure()
    chosen = resolve_device(device)
    checkpoint = load_checkpoint(run)
    data = checkpoint.dataset
    beyond = [k for k in cutoffs or () if k > data.n_items]
    if beyond:
        raise ConfigError(f"--k {beyond[0]} exceeds the catalogue of {data.n_items} items")
    ks = tuple(sorted({k for k in cutoffs or DEFAULT_KS if k <= data.n_items}))
    prepared = EvaluationSet.of(data, split, chosen)
    if not keeps_widths(transforms or ()):
        raise ConfigError(
            "--transform: a trained model takes noise alone; redundancy has to be there in training (fit)"
        )
    config = checkpoint.info.config
    seen = with_transformed_features(data, transforms or (), transform_seed, after=config.data.transforms)
    model = load_model(checkpoint, seeing=seen).to(chosen)
    if transforms and _same_vectors(model, load_model(checkpoint).to(chosen)):
        messages.print(
            f"warning: --transform changes nothing that {config.model_name} ranks by: its user and item vectors are "
            "the same without; equal metrics say nothing of robustness here",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    scores = {
        label(checkpoint.info): evaluate_model(model, prepared, data.n_items, ks),
        "popularity": evaluate(popularity_scorer(data, chosen), prepared, data.n_items, ks),
    }
    output.print(metrics_table(split, scores, ks))
    if json_file is not None:
        document: dict[str, Any] = {
            "run": str(run),
            "split": split,
            "users": len(prepared.users),
            "transforms": transforms or [],
            "transform_seed": transform_seed,
            "metrics": scores[label(checkpoint.info)],
            "popularity": scores["popularity"],
        }
        write_atomically(json_file, json.dumps(document, indent=2) + "\n")


@torch.inference_mode()
def _same_vectors(left: Recommender, right: Recommender) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left.vectors(), right.vectors(), strict=True))
