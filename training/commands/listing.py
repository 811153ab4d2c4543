"""``dvib-train list``."""

from __future__ import annotations

from typing import Annotated

import typer

from training.commands.shared import DatasetOption, PresetOption, VariantOption, output
from training.data.fetch import DEFAULT_DATASET
from training.listing import overview, settings

app = typer.Typer()


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
