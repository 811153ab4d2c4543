"""Options and first steps that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from benchmarks.environment import describe_environment, summary
from benchmarks.output import check_json_path
from training.common.choices import Preset, Variant
from training.common.errors import ConfigError, nearest

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write figures and raw samples to this file.")]
Shape = Annotated[str, typer.Option("--shape", help="Counts and widths of the synthetic data: baby, sports, ...")]
PresetOption = Annotated[Preset, typer.Option("--preset", help="Where the settings come from.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="Name of the data set.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="DVIB_DATA", help="Folder that holds DATASET/; without it, ml-100k."),
]
Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME", help="A recommender, or all; repeat for several.")
]
Variants = Annotated[
    list[str] | None,
    typer.Option("--dvib", metavar="VARIANT", help="none, constant or adaptive; repeat for several. Default: all."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key in every run.")]

VARIANTS: tuple[Variant, ...] = get_args(Variant)


def chosen_variants(names: list[str] | None) -> tuple[Variant, ...]:
    """Return the variants of these names, each once, in the usual order; all of them where there is no name.

    Raises:
        ConfigError: There is no variant of a name.
    """
    for name in names or ():
        if name not in VARIANTS:
            raise ConfigError(f"--dvib: no variant '{name}'{nearest(name, VARIANTS)}")
    return tuple(variant for variant in VARIANTS if not names or variant in names)


def begin(json_file: Path | None) -> dict[str, Any]:
    """Check where the figures go, and say what they are measured on."""
    check_json_path(json_file)
    environment = describe_environment()
    typer.echo(summary(environment))
    return environment
