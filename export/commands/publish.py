"""``dvib-export publish``, ``rollback`` and ``list``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.common.console import EXIT_DIFFERENT, require_groups

if TYPE_CHECKING:
    from export.publish import Outcome

app = typer.Typer()

Root = Annotated[Path, typer.Argument(help="The folder that versions are published in, one per served model.")]


@app.command(epilog="Example: `dvib-export publish bundles/dvib /srv/dvib`, then `dvib-serve --bundle dvib=/srv/dvib`")
def publish(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or another root: its current version.")],
    root: Root,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check graph, certificate and parity first, and not only the hashes.")
    ] = False,
) -> None:
    """Copy a bundle into a root of versions and make it the current one, in one step. Versions are never changed."""
    from export import publish as publishing

    folder = publishing.resolve(bundle)
    proven = _verify(folder) if verify else None
    outcome = publishing.publish(folder, root, _show, only_version=proven)
    _report(root, outcome, "published" if outcome.copied else "was there already")


@app.command(epilog="Examples: `dvib-export rollback /srv/dvib`; `dvib-export rollback /srv/dvib --to 8bc371fe9d75`")
def rollback(
    root: Root,
    to: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="By default the version that was current before.")
    ] = None,
) -> None:
    """Make an earlier version current again. Its files are checked first; nothing is copied or removed."""
    from export import publish as publishing

    _report(root, publishing.rollback(root, to, _show), "checked")


@app.command(name="list", epilog="Example: `dvib-export list /srv/dvib --metric recall@20`")
def list_versions(
    root: Root,
    metric: Annotated[str, typer.Option(help="Metric of the test split to show.")] = "ndcg@10",
) -> None:
    """Show the versions in a root, oldest publication first; the current one is marked with `*`."""
    from export import publish as publishing

    rows = [("", "version", "model", "variant", "dataset", "published", "MB", f"test {metric}")]
    for one in publishing.published(root):
        mark, since = "*" if one.current else "", one.published or "never current"
        if one.manifest is None:
            rows.append((mark, one.version, "(unreadable)", "", "", since, "", ""))
            continue
        value = one.manifest.metrics.get("test", {}).get(metric)
        size = sum(entry.size for entry in one.manifest.files.values())
        rows.append(
            (
                mark,
                one.version,
                one.manifest.model,
                one.manifest.variant,
                one.manifest.dataset.name,
                since,
                f"{size / 1e6:.1f}",
                "-" if value is None else f"{value:.4f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    publishing.current(root)


def _verify(folder: Path) -> str:
    """Return the version that was proven: the folder may hold another one later."""
    require_groups("cpu", "service")
    from export.bundle import BundleReader
    from export.verify import verify_bundle

    with BundleReader(folder) as reader:
        version = reader.manifest.version
    failed = [check for check in verify_bundle(folder) if check.passed is False]
    for check in failed:
        sys.stderr.write(f"dvib-export: {folder}: {check.name} failed: {check.detail}; nothing is published\n")
    if failed:
        raise typer.Exit(EXIT_DIFFERENT)
    return version


def _report(root: Path, outcome: Outcome, what: str) -> None:
    if not outcome.moved:
        moved = "is current already"
    elif outcome.previous is None:
        moved = "is current"
    else:
        moved = f"is current, before it {outcome.previous}"
    typer.echo(f"{root}: version {outcome.version} {what} and {moved}")


def _show(stage: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{stage} …\n")
