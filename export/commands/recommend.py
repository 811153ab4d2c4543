"""``dvib-export recommend``."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.common.console import require_groups
from training.common.errors import ConfigError, MissingGroupError

if TYPE_CHECKING:
    from export.recommend import OnUsers

app = typer.Typer()


@app.command(
    epilog="Examples: `dvib-export recommend bundles/dvib --all-users --k 50 --out lists.parquet`; "
    "`dvib-export recommend /srv/dvib --user A1 --user A2 --out two.parquet --force`"
)
def recommend(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a root of published versions.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file: user_id, rank, item_id, score.")],
    all_users: Annotated[bool, typer.Option("--all-users", help="Lists for all users of the bundle.")] = False,
    user: Annotated[list[str] | None, typer.Option("--user", metavar="ID", help="A user; repeat for several.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Items per user.")] = 10,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="By default one for each core.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the best items of many users to a Parquet file, exactly as the service replies, seen items excluded.

    All items are scored, also where the bundle's index is approximate.
    """
    require_groups("cpu", "service")
    if importlib.util.find_spec("polars") is None:
        raise MissingGroupError("this command needs polars to write Parquet; run: pip install 'polars>=1.30'")
    if all_users == bool(user):
        raise ConfigError("for whom? give either --all-users or --user ID, once or several times")
    count = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    # The writer's threads, too; polars reads this once, when it is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", str(count))
    from export.publish import resolve
    from export.recommend import recommend as write_lists

    # Polars, when imported, puts a handler of its own in front of Python's, which ends its threads with a panic.
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    with _progress() as show:
        written = write_lists(resolve(bundle), out, k, user, threads=count, force=force, on_users=show)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "k": k, "threads": count, **asdict(written)}))
        return
    typer.echo(
        f"{out}: {written.lines} lines for {written.users} users of version {written.version}, loaded in "
        f"{written.loading_seconds:.1f} s, ranked and written in {written.ranking_seconds:.1f} s"
    )


@contextmanager
def _progress() -> Iterator[OnUsers]:
    """Show how many users are done on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("users"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("users", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
