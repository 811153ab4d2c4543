"""The MMRec layout: ``NAME.inter`` with its own split, and feature matrices by item row."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.common.errors import DataError
from training.common.strings import StringTable
from training.data.assemble import Notes, Source, attach_features, categories_of, titles_of
from training.data.dataset import SPLITS, Dataset, Interactions
from training.data.features import Owners
from training.data.items import ItemTable, item_table
from training.data.options import DataOptions
from training.data.split import first_occurrences
from training.data.tabular import Table, find_table, read_table

_log = logging.getLogger("dvib.data")


def read_mmrec(name: str, folder: Path, options: DataOptions) -> Dataset:
    """Read ``NAME.inter`` (tab-separated: userID, itemID, x_label and any other columns) and what lies beside it.

    Ids are row numbers from 0: there are max + 1 users and items over the whole file. ``x_label`` is 0, 1 or 2 for
    train, valid and test. External ids are the row numbers as strings. ``items.tsv`` or ``items.csv`` (itemID or
    item_id) may give titles and categories; every ``MODALITY_feat.npy`` must have one row per item.

    Args:
        name: The data set's name.
        folder: Where its files are.
        options: Only ``text_dimensions`` applies, and only where features are derived from an items table.

    Returns:
        The data set. A (user, item) pair that is repeated keeps its first row.

    Raises:
        ConfigError: An option is set that the layout leaves no room for.
        DataError: The files are malformed or inconsistent.
    """
    options.refuse(
        ("min_rating", "k_core", "split", "split_seed"), f"the data set {name}", "an MMRec file carries its own split"
    )
    path = folder / f"{name}.inter"
    table = read_table(path)
    table.require(("userID", "itemID"), "the row numbers of users and items")
    table.require(("x_label",), "which split a row belongs to: 0 train, 1 valid, 2 test")
    if len(table) == 0:
        raise DataError(f"{path} has a header but no interactions")
    users, items = (table.integers(column, 0) for column in ("userID", "itemID"))
    labels = table.integers("x_label", 0, 2)
    counts = [_count(table, column, rows) for column, rows in (("userID", users), ("itemID", items))]
    first = first_occurrences(users, items)
    notes: Notes = {
        "layout": "mmrec",
        "split": "x_label",
        "interactions_read": len(table),
        "repeated_interactions_dropped": int((~first).sum()),
    }
    catalogue = pl.Series(np.arange(counts[1])).cast(pl.String)
    source = Source(name, folder, _items(folder, counts[1]), options)
    features, more = attach_features(source, catalogue, Owners(catalogue, f"the items in {path.name}"))
    _log.info("%s: %d users, %d items, %d interactions", name, counts[0], counts[1], int(first.sum()))
    masks = [first & (labels == label) for label in range(len(SPLITS))]
    return Dataset(
        name=name,
        user_ids=StringTable.of(map(str, range(counts[0]))),
        item_ids=StringTable.of(catalogue),
        titles=titles_of(source.items, catalogue),
        splits={split: Interactions(users[mask], items[mask]) for split, mask in zip(SPLITS, masks, strict=True)},
        features=features,
        notes=notes | more,
        categories=categories_of(source.items, catalogue),
    )


def _count(table: Table, column: str, rows: NDArray[np.int64]) -> int:
    """Return max + 1. An id far beyond the number of rows is no row number and would cost the memory of one."""
    largest = int(rows.argmax())
    if rows[largest] >= 1000 + 10 * len(rows):
        raise table.error(largest, column, "a row number: MMRec files number users and items from 0 without gaps")
    return int(rows[largest]) + 1


def _items(folder: Path, n_items: int) -> ItemTable | None:
    path = find_table(folder, "items", (".tsv", ".csv"))
    if path is None:
        return None
    table = read_table(path)
    identity = table.first_of(("itemID", "item_id")) or "itemID"
    table.require((identity,), "the row number of each item")
    table.integers(identity, 0, n_items - 1)
    return item_table(table, identity)
