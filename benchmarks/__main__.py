"""``dvib-bench`` and ``python -m benchmarks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.common import console

if TYPE_CHECKING:
    import typer


def _load() -> typer.Typer:
    from benchmarks.cli import app

    return app


def main() -> None:
    """Run the command line."""
    console.run("dvib-bench", _load)


if __name__ == "__main__":
    main()
