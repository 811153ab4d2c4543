"""``dvib-export add-items``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from training.common.console import require_groups
from training.common.errors import MissingGroupError

app = typer.Typer()


@app.command(
    "add-items",
    epilog="Example: `dvib-export add-items bundles/dvib new --out bundles/dvib-2`, where the folder `new` holds "
    "`items.csv` (item_id, title, genres) and, as for training, `image_feat.npy` and `text_feat.npy` with a row for "
    "each line",
)
def add_items(
    bundle: Annotated[
        Path, typer.Argument(help="A bundle with an item tower, or a root of published versions. It is not changed.")
    ],
    features: Annotated[
        Path, typer.Argument(help="A folder with items.csv|tsv|parquet and NAME_feat.npy for each modality.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The new bundle's folder.")],
    min_recall: Annotated[
        float | None, typer.Option("--min-recall", min=0, max=1, help="Refuse an approximate index that recalls less.")
    ] = None,
) -> None:
    """Make new items recommendable without training: a new bundle version, in which no other item's score differs."""
    require_groups("cpu", "service")
    if importlib.util.find_spec("polars") is None:
        raise MissingGroupError("this command needs polars to read tables; run: pip install polars")
    from export.additions import add_items as add
    from export.publish import resolve

    manifest = add(resolve(bundle), features, out, min_recall=min_recall)
    if manifest.added is not None:
        typer.echo(
            f"{out}: version {manifest.version}, {manifest.n_items} items, of which {manifest.added.count} were added "
            f"to version {manifest.added.base_version}"
        )
