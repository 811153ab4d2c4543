"""``dvib-export build``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.common.console import EXIT_DIFFERENT, require_groups
from training.common.errors import BundleError

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-export build runs/baseline --out bundles/baseline`; "
    "`dvib-export build runs/dvib --out bundles/dvib --baseline runs/baseline`"
)
def build(
    run: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's folder.")],
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="A plain run on the same data: the blanked proof is made against it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Strip, export and certify a checkpoint. Nothing is written unless every proof holds."""
    require_groups("training", "export", "cpu")
    from export.build import ProofFailedError, build_bundle
    from training.checkpoint import load_checkpoint

    if out.exists() and not force:
        raise BundleError(f"{out} already exists and bundles are never edited; choose another --out or pass --force")
    checkpoint = load_checkpoint(run)
    independent = load_checkpoint(baseline) if baseline is not None else None
    try:
        manifest, certificate = build_bundle(checkpoint, out, independent=independent, on_stage=_show)
    except ProofFailedError as error:
        sys.stderr.write(f"dvib-export: {error}\n")
        raise typer.Exit(EXIT_DIFFERENT) from error
    typer.echo(
        f"{out}: {manifest.model} {manifest.variant}, version {manifest.version}, {manifest.dimension} dimensions"
    )
    for name in certificate.proofs:
        typer.echo(f"  proof {name}: {certificate.explain(name)}")
    tensors, parameters = len(certificate.removed["tensors"]), certificate.removed["parameters"]
    typer.echo(f"  removed: {tensors} training-only tensors with {parameters} parameters")


def _show(stage: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{stage} …\n")
