"""Files of a bundle whose usual writers say too little of a full disk: PyTorch's end the process, others say nothing.

What is written here fails as Python's own files do, with an ``OSError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

_ARCHIVE_BYTES = 2**22
"""More than whatever stands beside the tensors in an archive of PyTorch's; the largest of our models' has 0.2 MB."""


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an ``.npy`` file, the same bytes as ``numpy.save``, which counts what it could not write but says not why.

    Args:
        path: The file to write.
        array: Of plain numbers.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def write_faiss(path: Path, index: faiss.Index) -> None:
    """Write an index through a file of Python's: FAISS's own loses an error in the last bytes, which it writes late."""
    with path.open("wb") as stream:
        writer = faiss.PyCallbackIOWriter(stream.write)  # type: ignore[attr-defined]  # its stubs leave it out
        faiss.write_index(index, writer)


def make_room(path: Path, tensor_bytes: Iterable[int]) -> None:
    """Make sure that PyTorch can write an archive: its writer ends the whole process when a write fails.

    Args:
        path: The file that is to be written next; it is left there, to be written over.
        tensor_bytes: Of each tensor that it will hold.

    Raises:
        OSError: There is not so much room.
    """
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, sum(tensor_bytes) + _ARCHIVE_BYTES)
