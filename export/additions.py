"""New items for a finished bundle: placed by its item tower, without training. Needs polars, but no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from export import bundle
from export.confine import bounded_memory
from export.index import build_index
from export.index_search import sample_users
from export.index_tuning import IndexChoice
from export.manifest import AddedItems, IndexEntry, Manifest
from export.onnx_safety import check_graph
from export.parity import session
from export.publish import check_outside
from export.runtime import GRAPH_ERRORS
from export.serving import ServingBundle, load_for_serving
from export.writing import write_array
from training.common.categories import ItemCategories
from training.common.errors import BundleError, DataError, ExportError
from training.common.folders import atomic_folder
from training.common.strings import StringTable
from training.data.assemble import categories_of
from training.data.features import feature_files, feature_owners, load_matrix, rows_of
from training.data.items import ItemTable, item_table
from training.data.tabular import find_table, read_table
from training.tensor_files import disk_errors

_TABLES = (".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 256
_USERS_AT_ONCE = 1024
_REWRITTEN = (bundle.ITEMS, bundle.INDEX, bundle.IDS, bundle.POPULARITY)


@dataclass(frozen=True)
class NewItems:
    """Items to be added.

    Attributes:
        ids: External ids, none of which the bundle has.
        titles: An empty string where there is none.
        features: Modality name → float32 [n, F_m], raw.
        categories: Which of them belong to which category, None where no category is told.
    """

    ids: list[str]
    titles: list[str]
    features: Mapping[str, NDArray[np.float32]]
    categories: ItemCategories | None = None


def read_new_items(folder: Path, modalities: Mapping[str, int], known: StringTable) -> NewItems:
    """Read a folder of new items: a table of them, and ``MODALITY_feat.npy`` for each modality, as for training.

    Args:
        folder: Holds ``items.csv``, ``.tsv`` or ``.parquet`` (item_id; title and a column of genres or categories if
            there are any). A matrix has a row for each line of it, in its order, or in that of ``feature_rows.csv``
            (row, item_id).
        modalities: Name → width of the features that the bundle's model was trained with.
        known: Ids that are taken.

    Raises:
        DataError: Something is missing or malformed, an id is repeated or taken, or the features are other ones.
    """
    items = _read_items(folder, known)
    files = feature_files(folder)
    wanted = ", ".join(f"{name} ({width} columns)" for name, width in modalities.items())
    for name in sorted(files.keys() ^ modalities.keys()):
        came = "has no" if name in modalities else "has a"
        raise DataError(
            f"{folder} {came} {name}_feat.npy; the bundle's model was trained with {wanted}: give just these"
        )
    owners = feature_owners(folder, items)
    rows = rows_of(owners.ids, items.ids)
    if (rows < 0).any():
        raise DataError(
            f"{folder}: feature_rows.csv has no row for {items.ids[int(rows.argmin())]!r}; a new item is placed by its "
            "features alone, so give it some"
        )
    features = {}
    for name, width in modalities.items():
        matrix = load_matrix(files[name], name, owners)
        if matrix.shape[1] != width:
            raise DataError(
                f"{files[name]} has {matrix.shape[1]} columns, wanted {width}: the features must come from the same "
                "encoder as those of the training data"
            )
        features[name] = matrix[rows]
    return NewItems(items.ids.to_list(), items.titles.to_list(), features, categories_of(items, items.ids))


def _read_items(folder: Path, known: StringTable) -> ItemTable:
    path = find_table(folder, "items", _TABLES)
    if path is None:
        raise DataError(
            f"{folder} holds no items.csv, items.tsv or items.parquet; add one (columns item_id, title) that says "
            "which item each feature row belongs to"
        )
    table = read_table(path)
    identity = table.first_of(("item_id", "itemID")) or "item_id"
    table.require((identity,), "the id of each new item")
    items = item_table(table, identity)
    if len(items.ids) == 0:
        raise DataError(f"{path} has a header but no items")
    for row, name in enumerate(items.ids):
        if known.find(name) is not None:
            raise table.error(row, identity, "an id that the bundle does not have")
    return items


def embed(tower: bytes, features: Mapping[str, NDArray[np.float32]], dimension: int) -> NDArray[np.float32]:
    """Run an item tower.

    Args:
        tower: Serialised ONNX graph, one float32 [B, F_m] per modality → ``vectors`` float32 [B, D].
        features: Modality name → float32 [n, F_m].
        dimension: D.

    Returns:
        float32 [n, D], finite.

    Raises:
        BundleError: The graph must not be run, cannot be run, or gives something else.
    """
    check_graph(tower, bundle.ITEM_TOWER)
    count = len(next(iter(features.values())))
    try:
        opened = session(tower)
        parts = [
            opened.run(["vectors"], {name: matrix[start : start + _ROWS_AT_ONCE] for name, matrix in features.items()})
            for start in range(0, count, _ROWS_AT_ONCE)
        ]
        vectors = np.concatenate([part[0] for part in parts])
    except (ValueError, MemoryError, *GRAPH_ERRORS) as error:
        raise BundleError(f"{bundle.ITEM_TOWER} cannot be run: {error}; export the bundle again") from error
    if vectors.dtype != np.float32 or vectors.shape != (count, dimension):
        raise BundleError(
            f"{bundle.ITEM_TOWER} gives {vectors.dtype} {vectors.shape}, wanted float32 {(count, dimension)}; "
            "export the bundle again"
        )
    infinite = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(infinite):
        raise DataError(
            f"the features in row {infinite[0]} give a vector that is not finite; compare their scale with the "
            "training data's"
        )
    return vectors


def add_items(folder: Path, features: Path, out: Path, *, min_recall: float | None = None) -> Manifest:
    """Write a new version of a bundle in which more items can be recommended; the old one stays as it is.

    All scores of the items it has already are the same to the last bit: their vectors, the user tower and the graphs
    are copied. The new items' rows follow theirs. They join its categories; a bundle without any gets none, for a
    filter by category would hide all that it had before. The certificate speaks of the trained items alone. The index
    is built anew by the same factory string, and its recall is measured again.

    Args:
        folder: The bundle, which may have added items itself: counts add up, and the base stays the trained bundle.
        features: See ``read_new_items``.
        out: The new bundle's folder, which must not exist.
        min_recall: Recall that an approximate index must reach.

    Returns:
        The new manifest.

    Raises:
        BundleError: The bundle is damaged, or ``out`` exists or lies inside of a bundle.
        ExportError: The bundle has no item tower, or the new index falls short of the recall.
        DataError: The new items cannot be used.
        FileExistsError: Somebody else has made ``out`` meanwhile.
        OSError: The file system refuses, for example because the disk is full; nothing is written.
    """
    if os.path.lexists(out):
        raise BundleError(f"{out} already exists and bundles are never edited; choose another --out")
    check_outside(out, "--out")
    serving = load_for_serving(folder)
    with bundle.BundleReader(folder) as reader:
        old = reader.manifest
        if old != serving.manifest:
            raise BundleError(f"{folder} was replaced while it was read; try again")
        if bundle.ITEM_TOWER in old.absent:
            raise ExportError(f"{folder} has no item tower to place new items: {old.absent[bundle.ITEM_TOWER]}")
        if not old.dataset.modalities:
            raise BundleError(f"{folder}: {bundle.ITEM_TOWER} has no modalities to take; export the bundle again")
        new = read_new_items(features, old.dataset.modalities, serving.item_ids)
        try:
            tower = bytes(reader.read(bundle.ITEM_TOWER))
            with bounded_memory():
                vectors = embed(tower, new.features, old.dimension)
                _check_scale(vectors, serving)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        with disk_errors(out), atomic_folder(out, replace=False) as fresh:
            for name in old.files.keys() - set(_REWRITTEN):
                (fresh / name).write_bytes(reader.read(name))
            items = np.concatenate([serving.items, vectors])
            index = _rebuild_index(items, fresh / bundle.INDEX, serving, min_recall)
            return _write(fresh, serving, new, items, index)


def _check_scale(vectors: NDArray[np.float32], serving: ServingBundle) -> None:
    """Refuse new vectors, float32 [n, D], so long that a user's score could overflow: no service would load them."""
    count = len(serving.users)
    blocks = [np.arange(start, min(start + _USERS_AT_ONCE, count)) for start in range(0, count, _USERS_AT_ONCE)]
    try:
        tower = session(serving.user_tower)
        longest_user = float(np.max([_longest(tower.run(["vectors"], {"users": rows})[0]) for rows in blocks]))
    except (MemoryError, *GRAPH_ERRORS) as error:
        raise BundleError(f"{bundle.USER_TOWER} cannot be run: {error}; export the bundle again") from error
    if not np.isfinite(longest_user):
        raise BundleError(f"{bundle.USER_TOWER} gives NaN or infinite vectors; train and export the model again")
    if not longest_user * _longest(vectors) < float(np.finfo(np.float32).max) / 4:
        raise DataError(
            "the features give vectors whose scores overflow float32; compare their scale with the training data's"
        )


def _longest(vectors: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())


def _rebuild_index(
    items: NDArray[np.float32], path: Path, serving: ServingBundle, min_recall: float | None
) -> IndexEntry:
    if serving.manifest.index.exact:
        return build_index(items, path)
    users = sample_users(len(serving.users))
    vectors = session(serving.user_tower).run(["vectors"], {"users": users})[0]
    choice = IndexChoice(serving.manifest.index.factory, min_recall)
    return build_index(items, path, vectors, choice, [serving.seen.of(user) for user in users])


def _write(
    fresh: Path, serving: ServingBundle, new: NewItems, items: NDArray[np.float32], index: IndexEntry
) -> Manifest:
    write_array(fresh / bundle.ITEMS, items)
    # No user of the training data has met them.
    popularity = np.concatenate([serving.popularity, np.zeros(len(new.ids), np.int64)])
    write_array(fresh / bundle.POPULARITY, popularity)
    item_ids, titles = StringTable.of([*serving.item_ids, *new.ids]), StringTable.of([*serving.titles, *new.titles])
    categories = serving.categories
    if categories is not None and new.categories is not None:
        categories = categories.extended(new.categories, len(serving.item_ids))
    save_file(
        {
            **serving.users.to_arrays("users"),
            **item_ids.to_arrays("items"),
            **titles.to_arrays("titles"),
            **(categories.to_arrays() if categories else {}),
        },
        fresh / bundle.IDS,
    )
    old = serving.manifest
    before = old.added.count if old.added else 0
    base = old.added.base_version if old.added else old.version
    fields = old.model_dump(exclude={"version", "files", "index", "added"})
    return bundle.write_manifest(
        fresh,
        **fields,
        index=index,
        added=AddedItems(count=before + len(new.ids), base_version=base),
    )
