"""Entry point of ``dvib-serve`` and of ``python -m service``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.common import console

if TYPE_CHECKING:
    import typer


def _load_app() -> typer.Typer:
    console.require_groups("service", "cpu")
    from service.cli import app

    return app


def main() -> None:
    """Run ``dvib-serve``."""
    console.run("dvib-serve", _load_app)


if __name__ == "__main__":
    main()
