"""The FAISS index over item vectors: built, tuned and measured at export, checked when read. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from export.index_layout import read_layout
from export.index_search import ItemIndex, Truth
from export.index_tuning import IndexChoice, build_fastest, build_tuned, flat_index, forget_search
from export.manifest import IndexEntry
from export.writing import write_faiss
from training.common.errors import BundleError, ExportError


def build_index(
    items: NDArray[np.float32],
    path: Path,
    users: NDArray[np.float32] | None = None,
    choice: IndexChoice | None = None,
    seen: Sequence[NDArray[np.int32]] | None = None,
) -> IndexEntry:
    """Write an inner-product index whose search parameters reach the recall at the least cost.

    The same vectors give the same bytes: seeds are fixed, and graphs, over items or over lists' centres, are built by
    one thread. ``auto`` alone depends on how fast this machine is.

    Args:
        items: float32 [I, D].
        path: The file to write.
        users: float32 [n, D], real user vectors that the recall is measured with; not used for a flat index.
        choice: Which index; flat if left out.
        seen: Per user of these the rows that a reply leaves out, strictly ascending; none if left out.

    Returns:
        Its entry in the manifest.

    Raises:
        ExportError: FAISS cannot make such an index, it is none that the service reads, or its recall falls short.
    """
    choice = choice or IndexChoice()
    if choice.name == "flat":
        built = flat_index(items)
    elif users is None or len(users) == 0:
        raise ExportError(f"--index {choice.name}: its recall is measured with user vectors, and there are none")
    else:
        make = build_fastest if choice.name == "auto" else build_tuned
        built = make(items, Truth(items, users, seen), choice)
    recall = built.entry.recall
    if choice.min_recall is not None and recall is not None and recall.value < choice.min_recall:
        raise ExportError(
            f"--index {choice.name} reaches recall@{recall.k} {recall.value:.4f} at its best, wanted "
            f"{choice.min_recall} (--min-recall); choose another index or a lower recall"
        )
    forget_search(built.index)
    write_faiss(path, built.index)
    return built.entry


def exact_over(index: ItemIndex, items: NDArray[np.float32]) -> faiss.Index:
    """Return what the parity of scores is judged with: the index itself where it is exact, else a flat one.

    Whatever proposes the candidates, a reply's scores come from the items' vectors; an approximate index is judged by
    its recall.
    """
    exact: faiss.Index = (index if index.entry.exact else flat_index(items)).index
    return exact


def read_index(data: memoryview, entry: IndexEntry, n_items: int, dimension: int) -> ItemIndex:
    """Read what ``build_index`` wrote, after a walk over every length and id in it.

    Args:
        data: The file.
        entry: What the manifest says of it.
        n_items: Vectors that it must hold.
        dimension: Their length.

    Returns:
        The index, set to search as the manifest says.

    Raises:
        BundleError: It is not exactly what the manifest names, over so many vectors of this dimension.
    """
    layout = read_layout(data, n_items, dimension)
    if (layout.kind, layout.factory) != (entry.kind, entry.factory):
        raise BundleError(f"it is a {layout.factory} index, the manifest says {entry.factory} ({entry.kind})")
    try:
        index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise BundleError("FAISS cannot read it") from error
    found, wanted = (index.ntotal, index.d, index.metric_type), (n_items, dimension, faiss.METRIC_INNER_PRODUCT)
    if found != wanted:
        raise BundleError(f"it has (vectors, dimension, metric) {found}, wanted {wanted}")
    return ItemIndex(index, entry, layout)
