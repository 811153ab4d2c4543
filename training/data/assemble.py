"""From a rating log to the data set: filter, number, split, and attach features. Shared by RecBole and CSV/Parquet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.common.categories import ItemCategories
from training.common.errors import ConfigError, DataError
from training.common.strings import StringTable
from training.data.dataset import SPLITS, Dataset, Interactions
from training.data.derived import attribute_features, text_features
from training.data.features import Owners, align, feature_files, feature_owners, load_matrix, rows_of
from training.data.items import ItemTable
from training.data.options import DataOptions
from training.data.split import by_first_appearance, first_occurrences, k_core, split_labels
from training.data.tabular import Table
from training.data.transforms import changes_texts, with_redundant_texts

Notes = dict[str, str | int | float | bool | None]
_log = logging.getLogger("dvib.data")


@dataclass(frozen=True)
class Columns:
    """How one file names what every rating log has; None where it has no such column."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None


@dataclass(frozen=True)
class Source:
    """A data set about to be read.

    Attributes:
        name: The data set's name.
        folder: Where feature matrices may lie.
        items: The items table, if there is one.
        options: Filters, split rule and feature width.
    """

    name: str
    folder: Path
    items: ItemTable | None
    options: DataOptions


def assemble(source: Source, layout: str, log: Table, columns: Columns) -> Dataset:
    """Build the data set from a rating log.

    Repeated (user, item) pairs are dropped first (the first in the file stays), then ratings below the threshold, then
    what is outside the k-core. Users and items are numbered in the order in which they first appear in what is left.

    Args:
        source: Name, folder, items table and options.
        layout: Which reader read it, for the notes.
        log: The interactions in file order.
        columns: The names of its columns.

    Returns:
        The data set; its notes say what was done.

    Raises:
        ConfigError: An option needs a column that the file does not have, or does not apply.
        DataError: The files are malformed or inconsistent, or nothing is left.
    """
    options = source.options
    user_codes, user_ids = _encode(log.ids(columns.user))
    item_codes, item_ids = _encode(log.ids(columns.item))
    first = first_occurrences(user_codes, item_codes)
    kept = np.flatnonzero(first)
    if options.min_rating is not None:
        kept = kept[_ratings(source.name, log, columns)[kept] >= options.min_rating]
    kept = kept[k_core(user_codes[kept], item_codes[kept], options.k_core)]
    if len(kept) == 0:
        raise DataError(
            f"{log.path}: none of {len(log)} interactions is left (min_rating={options.min_rating}, "
            f"k_core={options.k_core}); lower the thresholds"
        )
    users, user_rows = by_first_appearance(user_codes[kept])
    rows, item_rows = by_first_appearance(item_codes[kept])
    times = _times(source.name, log, columns)[kept] if options.split == "chronological" else None
    labels = split_labels(users, times, options)
    notes: Notes = {
        "layout": layout,
        "min_rating": options.min_rating,
        "k_core": options.k_core,
        "split": options.split,
        "split_seed": options.split_seed if options.split == "random" else None,
        "interactions_read": len(log),
        "repeated_interactions_dropped": int((~first).sum()),
        "interactions_kept": len(kept),
    }
    catalogue = item_ids[item_rows]
    features, more = attach_features(source, catalogue)
    _log.info("%s: %d users, %d items, %d interactions", source.name, len(user_rows), len(item_rows), len(kept))
    return Dataset(
        name=source.name,
        user_ids=StringTable.of(user_ids[user_rows]),
        item_ids=StringTable.of(catalogue),
        titles=titles_of(source.items, catalogue),
        splits={
            split: Interactions(users[labels == label], rows[labels == label]) for label, split in enumerate(SPLITS)
        },
        features=features,
        notes=notes | more,
        categories=categories_of(source.items, catalogue),
    )


def attach_features(
    source: Source, catalogue: pl.Series, owners: Owners | None = None
) -> tuple[dict[str, NDArray[np.float32]], Notes]:
    """Return the features of every catalogue item: the folder's matrices, else what the items table yields.

    Args:
        source: Name, folder, items table and options.
        catalogue: Item ids, String [I].
        owners: Which item each matrix row belongs to; by default what the folder says.

    Returns:
        Modality → float32 [I, F] (empty without matrices and without an items table), and notes on where the features
        come from and how many items of each modality have none.

    Raises:
        ConfigError: A text width is set where no text features are derived.
        DataError: A matrix is malformed or does not fit.
    """
    matrices, ids = {}, {}
    files = feature_files(source.folder)
    if files:
        owners = owners or feature_owners(source.folder, source.items)
        for modality, path in files.items():
            matrices[modality], ids[modality] = load_matrix(path, modality, owners), owners.ids
    elif source.items is not None:
        items = with_redundant_texts(source.items, source.options.transforms, source.options.transform_seed)
        for modality, matrix in _derive(items, source.options.text_dimensions).items():
            # An item without any known word or label has a zero row, which says nothing: it counts as missing.
            filled = np.flatnonzero(matrix.any(axis=1))
            matrices[modality], ids[modality] = matrix[filled], source.items.ids[filled]
    if files or "text" not in matrices:
        reason = "its features are read from files" if files else "it has no texts to derive features from"
        source.options.refuse(("text_dimensions",), f"the data set {source.name}", reason)
        if changes_texts(source.options.transforms):
            raise ConfigError(f"text-redundancy does not apply to the data set {source.name}: {reason}; leave it out")
    notes: Notes = {"features": "files" if files else "derived" if matrices else "none"}
    features = {}
    for modality, matrix in matrices.items():
        rows = rows_of(ids[modality], catalogue)
        features[modality], missing = align(matrix, rows, modality, source.name)
        notes[f"items_without_{modality}_features"] = missing
    return features, notes


def titles_of(items: ItemTable | None, catalogue: pl.Series) -> StringTable:
    """Return the title of each catalogue item, "" where there is none."""
    if items is None:
        return StringTable.of([""] * len(catalogue))
    titles = [*items.titles, ""]
    return StringTable.of(titles[row] for row in rows_of(items.ids, catalogue))


def categories_of(items: ItemTable | None, catalogue: pl.Series) -> ItemCategories | None:
    """Return which catalogue items have which category, or None where the items table gives none of them any."""
    if items is None or items.categories is None:
        return None
    places = pl.Series("item", rows_of(catalogue, items.ids))
    tokens = items.categories.tokens()
    found = tokens.select(places.gather(tokens["row"]), pl.col("token").str.strip_chars())
    found = found.filter((pl.col("item") >= 0) & (pl.col("token") != ""))
    return ItemCategories.of(found["item"].to_numpy(), found["token"].to_list())


def _derive(items: ItemTable, text_dimensions: int) -> dict[str, NDArray[np.float32]]:
    derived = {"attributes": attribute_features(items), "text": text_features(items, text_dimensions)}
    return {modality: matrix for modality, matrix in derived.items() if matrix is not None}


def _encode(ids: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """Return the row of each id in the order of first appearance, int64 [n], and the distinct ids."""
    distinct = ids.unique(maintain_order=True)
    return rows_of(distinct, ids), distinct


def _ratings(name: str, log: Table, columns: Columns) -> NDArray[np.float64]:
    if columns.rating is None:
        raise ConfigError(f"min_rating is set, but the data set {name} has no ratings ({log.path}); leave it unset")
    return log.numbers(columns.rating)


def _times(name: str, log: Table, columns: Columns) -> NDArray[np.int64] | NDArray[np.float64]:
    if columns.timestamp is None:
        raise ConfigError(
            f"split=chronological is set, but the data set {name} has no timestamps ({log.path}); use split=random"
        )
    return log.times(columns.timestamp)
