"""``dvib-train`` and ``python -m training``."""

from __future__ import annotations

import typer

from training.common import console


def _load() -> typer.Typer:
    console.require_groups("training")
    from training.cli import app

    return app


def main() -> None:
    """Run the command line."""
    console.run("dvib-train", _load)


if __name__ == "__main__":
    main()
