"""The FAISS index over item vectors. Needs neither torch nor training."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from export.bundle import IndexEntry
from training.common.errors import BundleError

_FLAT_INNER_PRODUCT = b"IxFI"


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


def read_index(data: memoryview, n_items: int, dimension: int) -> faiss.Index:
    """Read what ``build_index`` wrote.

    Raises:
        BundleError: It is no flat inner-product index over so many vectors of this dimension.
    """
    # Before FAISS parses anything: other index types give approximate answers, and some open files by name.
    if bytes(data[:4]) != _FLAT_INNER_PRODUCT:
        raise BundleError("it is no flat inner-product index")
    try:
        index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise BundleError("FAISS cannot read it") from error
    found, wanted = (index.ntotal, index.d, index.metric_type), (n_items, dimension, faiss.METRIC_INNER_PRODUCT)
    if found != wanted:
        raise BundleError(f"it has (vectors, dimension, metric) {found}, wanted {wanted}")
    return index
