"""RecBole's atomic files: ``NAME.inter`` and ``NAME.item`` with a type behind every column name."""

from __future__ import annotations

from pathlib import Path

from training.common.errors import DataError
from training.data.assemble import Columns, Source, assemble
from training.data.dataset import Dataset
from training.data.items import ItemTable, item_table
from training.data.options import DataOptions
from training.data.tabular import Table, read_table

_USER, _ITEM, _RATING, _TIMESTAMP = "user_id:token", "item_id:token", "rating:float", "timestamp:float"


def read_recbole(name: str, folder: Path, options: DataOptions) -> Dataset:
    """Read ``NAME.inter`` (user_id, item_id, optional rating and timestamp), and ``NAME.item`` where it exists.

    Feature matrices may lie beside them: rows as ``feature_rows.csv`` says, else in the order of ``NAME.item``.
    Without any, features are derived from the items' words and labels.

    Args:
        name: The data set's name.
        folder: Where its files are.
        options: Filters, split rule and feature width.

    Returns:
        The data set over the users and items that remain after filtering.

    Raises:
        ConfigError: An option needs a column that the file does not have, or does not apply.
        DataError: The files are malformed or inconsistent.
    """
    log = read_table(folder / f"{name}.inter")
    log.require((_USER, _ITEM), "who interacted with what")
    columns = Columns(_USER, _ITEM, log.first_of((_RATING,)), log.first_of((_TIMESTAMP,)))
    path = folder / f"{name}.item"
    items = _items(read_table(path)) if path.is_file() else None
    return assemble(Source(name, folder, items, options), "recbole", log, columns)


def _items(table: Table) -> ItemTable:
    table.require((_ITEM,), "the id of each item")
    kinds = {}
    for header in table.frame.columns:
        _, colon, kind = header.partition(":")
        if not colon:
            raise DataError(f"{table.path}: column {header} has no type; RecBole's headers read name:type")
        kinds[header] = kind
    return item_table(table, _ITEM, kinds)
