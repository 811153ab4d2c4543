"""Where workers write their counts, which all of them read."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "dvib-serve-"
_YOUNG_S = 60.0
"""A folder that is younger may not be locked yet by who has made it."""


@contextmanager
def metrics_folder(wanted: Path | None) -> Iterator[Path]:
    """Provide the folder.

    A temporary one is locked: who cleans up leaves it alone, be it systemd, which removes what is old, or another
    service, which removes what services that were killed have left.

    Args:
        wanted: Made if it is not there. A temporary folder, removed in the end, where left out.

    Raises:
        ConfigError: There is no place for temporary files.
        OSError: The folder cannot be made.
    """
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no folder for the metrics: {error.strerror}; set DVIB_SERVE_METRICS_DIR to one that can be written"
        ) from error
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = _open(folder)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers(folder.parent)
        yield folder


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _remove_leftovers(place: Path) -> None:
    """Remove folders whose service has ended without doing so."""
    for folder in place.glob(_PREFIX + "*"):
        try:
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _YOUNG_S:
                continue
            lock = _open(folder)
        except OSError:  # it has gone, or is no folder of ours
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # its service lives
        finally:
            os.close(lock)
