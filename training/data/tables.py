"""Plain CSV or Parquet: ``ratings``, optional ``items``, and features whose rows are told by ``feature_rows.csv``."""

from __future__ import annotations

from pathlib import Path

from training.common.errors import DataError
from training.data.assemble import Columns, Source, assemble
from training.data.dataset import Dataset
from training.data.items import ItemTable, item_table
from training.data.options import DataOptions
from training.data.tabular import Table, find_table, read_table

SUFFIXES = (".csv", ".parquet")
_USER, _ITEM = ("user_id", "userID"), ("item_id", "itemID")


def read_tables(name: str, folder: Path, options: DataOptions) -> Dataset:
    """Read ``ratings.csv|parquet`` (user_id, item_id, optional rating and timestamp) and ``items.csv|parquet``.

    Feature matrices may lie beside them: rows as ``feature_rows.csv`` (row, item_id) says, else in the order of the
    items table. Without any, features are derived from the items' words and labels.

    Args:
        name: The data set's name.
        folder: Where its files are.
        options: Filters, split rule and feature width.

    Returns:
        The data set over the users and items that remain after filtering.

    Raises:
        ConfigError: An option needs a column that the file does not have, or does not apply.
        DataError: The files are missing, malformed or inconsistent.
    """
    path = find_table(folder, "ratings", SUFFIXES)
    if path is None:
        raise DataError(f"{folder} holds neither ratings.csv nor ratings.parquet")
    log = read_table(path)
    columns = Columns(
        _column(log, _USER, "who interacted"),
        _column(log, _ITEM, "with what"),
        log.first_of(("rating",)),
        log.first_of(("timestamp",)),
    )
    return assemble(Source(name, folder, _items(folder), options), "tables", log, columns)


def _items(folder: Path) -> ItemTable | None:
    path = find_table(folder, "items", SUFFIXES)
    if path is None:
        return None
    table = read_table(path)
    return item_table(table, _column(table, _ITEM, "the id of each item"))


def _column(table: Table, accepted: tuple[str, ...], purpose: str) -> str:
    column = table.first_of(accepted) or accepted[0]
    table.require((column,), purpose)
    return column
