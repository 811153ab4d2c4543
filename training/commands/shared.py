"""What the subcommands share: options, consoles, the start of the process, tables of metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from training.checkpoint import CheckpointInfo
from training.common.allocator import keep_freed_memory
from training.common.choices import Preset, Variant
from training.evaluation import METRICS

output = Console()
messages = Console(stderr=True)
_WIDE = 400

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", envvar="DVIB_DATA", help="Folder that holds DATASET/; without it, ml-100k is fetched and cached."
    ),
]
PRESET_HELP = "The paper's method, with settings tuned on validation data or as published; or the authors' code's."
VariantOption = Annotated[Variant, typer.Option("--dvib", help="Plain, DVIB_c or DVIB_a.")]
PresetOption = Annotated[Preset, typer.Option("--preset", help=PRESET_HELP)]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Name of the data set.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]

# Where a configuration file may say the same, nothing said here means what the file says.
MaybeModel = Annotated[
    str | None, typer.Option("--model", help="The recommender; `list` shows all.", show_default="vbpr")
]
MaybeVariant = Annotated[Variant | None, typer.Option("--dvib", help="Plain, DVIB_c or DVIB_a.", show_default="none")]
MaybePreset = Annotated[Preset | None, typer.Option("--preset", help=PRESET_HELP, show_default="tuned")]
MaybeDataset = Annotated[str | None, typer.Option("--dataset", help="Name of the data set.", show_default="ml-100k")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings from a YAML or JSON file, sections as in checkpoint.json; a checkpoint.json is one too. "
        "The file wins over the preset, options and --set win over the file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one key, for example dvib.gamma_d=0.5; `list MODEL` shows all."
    ),
]


def configure() -> None:
    """Settle how this process frees memory and writes messages."""
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)


def label(info: CheckpointInfo) -> str:
    """Name a checkpoint's line in a table of metrics."""
    variant = info.config.dvib.variant
    return info.config.model_name if variant == "none" else f"{info.config.model_name} + DVIB {variant}"


def metrics_table(split: str, scores: dict[str, dict[str, float]], ks: tuple[int, ...]) -> Table:
    """Lay out metrics: a line for each label and cut-off, a column for each metric.

    Args:
        split: The split they are about.
        scores: Label → metric → value.
        ks: Cut-offs.
    """
    table = Table("", *METRICS, title=f"{split} split", title_justify="left")
    for k in ks:
        for name, metrics in scores.items():
            shown = (metrics.get(f"{metric}@{k}") for metric in METRICS)
            table.add_row(f"{name} @{k}", *("" if value is None else f"{value:.4f}" for value in shown))
    return table


def show(console: Console, table: Table) -> None:
    """Print a table: folded into a terminal, in its whole width into a file or a pipe."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=console.file, width=_WIDE).print(table)
