"""Entry point of ``dvib-serve`` and of ``python -m service``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.process.signals import end_at_sigterm

if TYPE_CHECKING:
    import typer


def _load_app() -> typer.Typer:
    from training.common import console

    console.require_groups("service", "cpu")
    from service.cli import app

    return app


def main() -> None:
    """Run ``dvib-serve``."""
    end_at_sigterm()  # before anything that takes a while, as imports do
    from training.common import console

    console.run("dvib-serve", _load_app)


if __name__ == "__main__":
    main()
