"""Where workers write their counts, which all of them read."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def metrics_folder(wanted: Path | None) -> Iterator[Path]:
    """Provide the folder.

    Args:
        wanted: Made if it is not there. A temporary folder, removed in the end, where left out.

    Raises:
        OSError: The folder cannot be made.
    """
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="dvib-serve-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
