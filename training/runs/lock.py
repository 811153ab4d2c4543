"""One process at a time: two that write the same runs would undo each other's work."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from training.common.errors import ConfigError
from training.common.folders import make_folder


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; it is made where it is missing. A kill lets go of it.

    Raises:
        ConfigError: Another process holds it.
    """
    make_folder(folder)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: another process is working in it; wait for it, or choose another") from error
        yield
