"""``dvib-bench synth-bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.output import progress_bar
from training.common.console import require_groups

app = typer.Typer()


@app.command(
    "synth-bundle",
    epilog="Examples: `dvib-bench synth-bundle --items 7000 --out bundles/made-up`; "
    "`dvib-bench synth-bundle --items 1000000 --users 100000 --index IVF4096,SQ8 --out bundles/million`, "
    "then `dvib-serve --bundle bundles/million`",
)
def synth_bundle(
    items: Annotated[int, typer.Option("--items", min=1, help="Items of the catalogue.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder; a bundle that is there is replaced.")],
    users: Annotated[int, typer.Option("--users", min=1, help="Users.")] = 10_000,
    dimension: Annotated[int, typer.Option("--dimension", min=1, max=4096, help="Length of the vectors.")] = 128,
    seen: Annotated[int, typer.Option("--seen", min=0, help="Items that every user has seen.")] = 20,
    index: Annotated[
        str, typer.Option("--index", help="flat, hnsw, ivf, ivfpq, auto or a FAISS factory string.")
    ] = "flat",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
) -> None:
    """Write a bundle of made-up vectors, to measure speed with: it holds no model, and verify refuses it."""
    require_groups("training", "service", "cpu")
    from benchmarks.synth_bundle import Options, write_bundle

    options = Options(items=items, users=users, dimension=dimension, seen=seen, index=index, seed=seed)
    with progress_bar(options.steps, "drawing") as bar:

        def show(step: str) -> None:
            bar.describe(step)
            bar.advance()

        manifest = write_bundle(options, out, show)
    recall = manifest.index.recall
    found = "exact" if recall is None else f"recall@{recall.k} {recall.value:.4f} over {recall.users} users"
    size = sum(entry.size for entry in manifest.files.values())
    typer.echo(
        f"{out}: {manifest.dataset.name}, {manifest.index.factory} index ({found}), {size / 1e6:.0f} MB, "
        f"version {manifest.version}; vectors drawn at random, no model"
    )
