"""What the commands share: progress, one JSON document, errors before the work instead of after it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.common.errors import DvibError
from training.common.folders import write_atomically

_NUMBERS = re.compile(r"\[\s+((?:-?[0-9][0-9.eE+-]*,\s+)*-?[0-9][0-9.eE+-]*)\s+\]")
_BREAK = re.compile(r",\s+")


class ProgressBar:
    """A bar on stderr where that is a terminal; otherwise only the lines that are worth keeping.

    Args:
        progress: rich's.
        total: Steps of the work.
        description: What is being done.
    """

    def __init__(self, progress: Progress, total: int, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total)

    def advance(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def describe(self, description: str) -> None:
        """Say what is being done now."""
        self._progress.update(self._task, description=description)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(total: int, description: str) -> Iterator[ProgressBar]:
    """Show a bar while the block runs."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, total, description)


def check_json_path(path: Path | None) -> None:
    """Refuse a ``--json`` file that could not be written, before anything is measured.

    Raises:
        DvibError: It is a folder, or its folder cannot be written to or made.
    """
    if path is None:
        return
    if path.is_dir():
        raise DvibError(f"--json {path} is a folder; name a file")
    ancestor = next(parent for parent in path.absolute().parents if parent.exists())
    if not (ancestor.is_dir() and os.access(ancestor, os.W_OK | os.X_OK)):
        raise DvibError(f"--json {path} cannot be written: {ancestor} is no folder that may be written to")


def _readable(document: Mapping[str, Any]) -> str:
    """Return JSON with a line for each value, but lists of numbers on one line: samples come by the ten thousand."""
    text = json.dumps(document, indent=1)
    return _NUMBERS.sub(lambda found: f"[{_BREAK.sub(',', found[1])}]", text) + "\n"


def command_line() -> str:
    """Return what the user typed."""
    return " ".join(["dvib-bench", *sys.argv[1:]])


def write_document(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write a benchmark's document and the command that made it, whole or not at all.

    Args:
        path: The file; None writes nothing.
        document: JSON values.

    Raises:
        DvibError: The file cannot be written.
    """
    if path is None:
        return
    try:
        write_atomically(path, _readable({**document, "command": command_line()}))
    except OSError as error:
        raise DvibError(f"cannot write {path}: {error.strerror or error}") from error
