"""The items table: ids, titles, categories, and the columns from which features can be derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from training.common.errors import DataError
from training.data.tabular import Table

_PROSE = frozenset({"title", "name", "text", "description", "desc", "summary", "plot", "overview", "abstract"})
_TOPICS = frozenset({"genre", "genres", "class", "category", "categories", "brand", "tags", "keywords"})
_CATEGORIES = (frozenset({"genre", "genres", "category", "categories"}), frozenset({"class", "classes"}))
"""Words in the name of the column of categories; the plainer ones first."""
_LIST_SEPARATOR = "|"
_KINDS = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class ItemColumn:
    """One column that says something about items.

    Attributes:
        name: As in the header, without a RecBole type.
        values: String [rows], null where empty.
        words: It is to be read as text.
        prose: It is free text: not even a small vocabulary makes attributes of it.
        separator: What separates several tokens in a cell, None where a cell is one token.
    """

    name: str
    values: pl.Series
    words: bool
    prose: bool
    separator: str | None

    def tokens(self) -> pl.DataFrame:
        """Return the tokens of all cells in their order: ``row`` int64 and ``token`` String, none of them empty."""
        cells = self.values.fill_null("")
        lists = cells.str.split(self.separator) if self.separator else cells.reshape((-1, 1)).arr.to_list()
        long = pl.DataFrame({"row": np.arange(len(cells)), "token": lists}).explode("token")
        return long.filter(pl.col("token") != "")


@dataclass(frozen=True)
class ItemTable:
    """Items as a file describes them, in its order.

    Attributes:
        path: Where it was read.
        ids: Unique external ids, String [rows].
        titles: String [rows], "" where there is none.
        columns: What features can be derived from.
    """

    path: Path
    ids: pl.Series
    titles: pl.Series
    columns: tuple[ItemColumn, ...]

    @property
    def categories(self) -> ItemColumn | None:
        """The column whose tokens are the items' categories: the first of genres or categories, else of classes."""
        for wanted in _CATEGORIES:
            for column in self.columns:
                if not column.prose and wanted & set(column.name.lower().split("_")):
                    return column
        return None


def item_table(table: Table, identity: str, kinds: Mapping[str, str] | None = None) -> ItemTable:
    """Interpret a table of items by its column names, and by RecBole's types where the file has them.

    Args:
        table: The file.
        identity: The column with the item ids.
        kinds: Column → RecBole type (``token``, ``token_seq``, ``float``, ``float_seq``). Without it, cells may list
            several tokens separated by ``|``, and only columns with a telling name are read as text.

    Returns:
        The table; float columns are left out.

    Raises:
        DataError: An id is empty or occurs twice, or a type is unknown.
    """
    columns = []
    for header in table.frame.columns:
        if header == identity:
            continue
        name = header.partition(":")[0] if kinds is not None else header
        parts = set(name.lower().split("_"))
        prose, words, separator = bool(parts & _PROSE), bool(parts & (_PROSE | _TOPICS)), _LIST_SEPARATOR
        if kinds is not None:
            kind = kinds[header]
            if kind not in _KINDS:
                raise DataError(f"{table.path}: column {header} has the type '{kind}'; known: {', '.join(_KINDS)}")
            if kind.startswith("float"):
                continue
            words = words or kind == "token_seq"
            separator = " " if kind == "token_seq" else ""
        columns.append(ItemColumn(name, table.frame[header], words, prose, separator or None))
    ids = table.unique_ids(identity)
    title = _title_column(columns)
    titles = pl.Series([""], dtype=pl.String).new_from_index(0, len(ids)) if title is None else title.values
    return ItemTable(table.path, ids, titles.fill_null(""), tuple(columns))


def _title_column(columns: list[ItemColumn]) -> ItemColumn | None:
    """Return the first column whose name speaks of a title, else of a name (but not of a file name)."""
    for wanted in ("title", "name"):
        for column in columns:
            lowered = column.name.lower()
            if wanted in lowered and "filename" not in lowered and "file_name" not in lowered:
                return column
    return None
