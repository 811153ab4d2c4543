"""The FAISS index over item vectors. Needs neither torch nor training."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from export.bundle import IndexEntry


def build_index(items: NDArray[np.float32], path: Path) -> IndexEntry:
    """Write a flat inner-product index: exact up to the order of summation.

    Args:
        items: float32 [I, D].
        path: The file to write.

    Returns:
        Its entry in the manifest.
    """
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    faiss.write_index(index, str(path))
    return IndexEntry(factory="Flat", exact=True)
