"""``dvib-bench`` and ``python -m benchmarks``."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from benchmarks.ending import orderly_at_sigterm
from training.common import console

if TYPE_CHECKING:
    import typer


EXIT_CRASHED = 70


def _load() -> typer.Typer:
    from benchmarks.cli import app

    return app


def main() -> None:
    """Run the command line.

    A crash has an exit code of its own: Python's is 1, and here that is what a measurement may say.
    """
    with orderly_at_sigterm():
        try:
            console.run("dvib-bench", _load)
        except Exception:  # noqa: BLE001 (shown, and the program ends)
            traceback.print_exc()
            sys.exit(EXIT_CRASHED)


if __name__ == "__main__":
    main()
