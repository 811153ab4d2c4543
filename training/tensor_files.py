"""What the writers of large files say of a full disk, said as everything else says it."""

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
    """Turn what the file system refuses to whoever writes below a target into an ``OSError`` that names a place.

    The writer of safetensors files has one class for all its errors, which is none of Python's own, and tells them
    apart in words. Python's own, of a file that is open, does not say which file that is.

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
        raise _at(target, int(code[1])) from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise _at(target, error.errno) from error


def _at(target: Path, number: int) -> OSError:
    return OSError(number, os.strerror(number), str(target))
