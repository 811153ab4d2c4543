"""``dvib-train fetch``."""

from __future__ import annotations

import typer

from training.commands.shared import configure, output
from training.data.fetch import fetch_default

app = typer.Typer()


@app.command(epilog="Example: `dvib-train fetch`")
def fetch() -> None:
    """Fetch the default data set (ml-100k) into the cache, checking its hashes."""
    configure()
    output.print(f"ml-100k is in {fetch_default()}")
