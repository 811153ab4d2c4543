"""What the writer of safetensors files says of a full disk, said as everything else says it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_CODE = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the file system refuses to the writer of safetensors files into an ``OSError``.

    The writer has one class for all its errors, which is none of Python's own, and tells them apart in words.

    Args:
        target: What is being written, for the message.

    Raises:
        OSError: No space, a file too large, a disk that fails.
    """
    try:
        yield
    except SafetensorError as error:
        code = _CODE.search(str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(target)) from error
