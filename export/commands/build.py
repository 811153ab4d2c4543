"""``dvib-export build``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.common.console import EXIT_DIFFERENT, require_groups
from training.common.errors import BundleError

if TYPE_CHECKING:
    from export.build import Stage
    from export.manifest import IndexEntry, Manifest

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-export build runs/baseline --out bundles/baseline`; "
    "`dvib-export build runs/dvib --out bundles/dvib --baseline runs/baseline`; "
    "`dvib-export build runs/dvib --out bundles/dvib --index auto --min-recall 0.99`"
)
def build(
    run: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="A plain run on the same data: the blanked proof is made against it."),
    ] = None,
    index: Annotated[
        str, typer.Option("--index", metavar="KIND", help="flat, hnsw, ivf, ivfpq, auto or a FAISS factory string.")
    ] = "flat",
    min_recall: Annotated[
        float | None,
        typer.Option("--min-recall", min=0, max=1, help="Write nothing if the index finds fewer of the best items."),
    ] = None,
    flat_budget: Annotated[
        float, typer.Option("--flat-budget", min=0, help="Milliseconds per query within which auto stays with flat.")
    ] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Strip, export and certify a checkpoint. Nothing is written unless every proof holds."""
    require_groups("training", "export", "cpu")
    from export.build import ProofFailedError, build_bundle
    from export.index_tuning import IndexChoice
    from training.checkpoint import load_checkpoint

    if out.exists() and not force:
        raise BundleError(f"{out} already exists and bundles are never edited; choose another --out or pass --force")
    checkpoint = load_checkpoint(run)
    independent = load_checkpoint(baseline) if baseline is not None else None
    choice = IndexChoice(index, min_recall, flat_budget / 1000)
    try:
        with stages() as enter:
            manifest, certificate = build_bundle(
                checkpoint, out, independent=independent, choice=choice, on_stage=enter
            )
    except ProofFailedError as error:
        sys.stderr.write(f"dvib-export: {error}\n")
        raise typer.Exit(EXIT_DIFFERENT) from error
    typer.echo(
        f"{out}: {manifest.model} {manifest.variant}, version {manifest.version}, {manifest.dimension} dimensions"
    )
    typer.echo(f"  {describe_index(manifest.index)}")
    for line in describe_files(manifest):
        typer.echo(f"  {line}")
    for name in certificate.proofs:
        typer.echo(f"  proof {name}: {certificate.explain(name)}")
    removed = certificate.removed
    typer.echo(
        f"  removed: {len(removed.tensors)} training-only tensors with {removed.parameters} parameters, "
        f"{sum(removed.operators.values())} nodes, {removed.flops_per_user} FLOPs"
    )


def describe_index(entry: IndexEntry) -> str:
    """Say in one line what index a bundle has and how good it is."""
    if entry.recall is None:
        return f"index {entry.factory}, exact"
    settings = ", ".join(f"{name} {value}" for name, value in entry.search.items())
    return (
        f"index {entry.factory} ({settings}): recall@{entry.recall.k} {entry.recall.value:.4f} over "
        f"{entry.recall.users} users"
    )


def describe_files(manifest: Manifest) -> Iterator[str]:
    """Yield what a bundle holds and how large it is, and what it lacks and why."""
    listed = sorted(manifest.files.items(), key=lambda entry: -entry[1].size)
    total = sum(entry.size for _, entry in listed)
    yield f"{len(listed)} files, {_size(total)}: " + ", ".join(f"{name} {_size(entry.size)}" for name, entry in listed)
    for name, reason in manifest.absent.items():
        yield f"no {name}: {reason}"


def _size(count: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


@contextmanager
def stages() -> Iterator[Stage]:
    """Show on stderr what is being done and for how long, if that is a terminal; what is done stays as a line."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    began, current = time.perf_counter(), ""

    def finish() -> None:
        if current:
            console.print(f"{time.perf_counter() - began:7.1f} s  {current}", markup=False)

    with console.status("") as status:

        def enter(stage: str) -> None:
            nonlocal began, current
            finish()
            began, current = time.perf_counter(), stage
            status.update(f"{stage} …")

        yield enter
        finish()
