"""``dvib-export`` and ``python -m export``."""

from __future__ import annotations

import typer

from training.common import console


def _load() -> typer.Typer:
    from export.cli import app

    return app


def main() -> None:
    """Run the command line."""
    console.run("dvib-export", _load)


if __name__ == "__main__":
    main()
