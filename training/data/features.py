"""Feature matrices: read ``MODALITY_feat.npy`` without trusting it, and give every item of the catalogue a row."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from training.common.errors import DataError
from training.data.dataset import check_features
from training.data.items import ItemTable
from training.data.tabular import Table, read_table

_SUFFIX = "_feat.npy"
_MODALITY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_log = logging.getLogger("dvib.data")


@dataclass(frozen=True)
class Owners:
    """Which item each feature row belongs to.

    Attributes:
        ids: Unique item ids, String [rows of every feature matrix].
        told_by: What says so, for messages.
    """

    ids: pl.Series
    told_by: str


def feature_files(folder: Path) -> dict[str, Path]:
    """Return modality name → path of every ``MODALITY_feat.npy`` in a folder, sorted by name.

    Raises:
        DataError: A name that cannot name a modality.
    """
    files = {path.name.removesuffix(_SUFFIX): path for path in sorted(folder.glob(f"*{_SUFFIX}"))}
    for modality, path in files.items():
        if not _MODALITY.fullmatch(modality):
            raise DataError(
                f"{path}: '{modality}' cannot name a modality; use letters, digits, _ and -, a letter first"
            )
    return files


def load_matrix(path: Path, modality: str, owners: Owners) -> NDArray[np.float32]:
    """Read one feature matrix. Nothing in the file is executed: arrays of Python objects are refused.

    Args:
        path: A ``.npy`` file of floats in any width.
        modality: For messages.
        owners: Whose rows they are.

    Returns:
        float32 [len(owners.ids), F], finite, in memory.

    Raises:
        DataError: Not a ``.npy`` file, or not a finite two-dimensional matrix of floats with that many rows.
    """
    try:
        # The memory map refuses object arrays, so that no pickle is ever read; ``np.load`` would also accept zip files.
        stored = open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a usable .npy file ({reason}); save a float32 array with numpy.save") from error
    if stored.dtype.kind != "f":
        raise DataError(f"{path} holds {stored.dtype}, wanted floats; save it as float32")
    if stored.ndim != 2 or stored.shape[0] != len(owners.ids) or stored.shape[1] == 0:
        raise DataError(
            f"{path} has the shape {stored.shape}, wanted {len(owners.ids)} rows, one for each of {owners.told_by}, "
            "and one column or more; rebuild the matrix"
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the check below reports
        matrix = np.array(stored, dtype=np.float32, order="C")
    check_features(matrix, modality, len(owners.ids), str(path))
    return matrix


def feature_owners(folder: Path, items: ItemTable | None) -> Owners:
    """Return which item each feature row belongs to: ``feature_rows.csv``, else the order of the items table.

    Raises:
        DataError: There is neither, or ``feature_rows.csv`` does not name each row and each item once.
    """
    path = folder / "feature_rows.csv"
    if not path.is_file():
        if items is None:
            raise DataError(
                f"{folder} has feature matrices but nothing says which item a row belongs to; "
                "add feature_rows.csv (columns row, item_id)"
            )
        return Owners(items.ids, f"the items in {items.path.name}")
    table = read_table(path)
    identity = table.first_of(("item_id", "itemID")) or "item_id"
    table.require(("row", identity), "which feature row belongs to which item")
    rows = table.integers("row", 0, len(table) - 1)
    _refuse_repeated(table, rows)
    return Owners(table.unique_ids(identity)[np.argsort(rows)], "the rows in feature_rows.csv")


def _refuse_repeated(table: Table, rows: NDArray[np.int64]) -> None:
    repeated = (~pl.Series(rows).is_first_distinct()).arg_true()
    if len(repeated):
        raise table.error(int(repeated[0]), "row", "a row number that no line before has")


def rows_of(ids: pl.Series, catalogue: pl.Series) -> NDArray[np.int64]:
    """Return for each id of the catalogue its position among ``ids``, or -1.

    Args:
        ids: Unique strings [R].
        catalogue: Strings [I].

    Returns:
        int64 [I].
    """
    positions = pl.Series(np.arange(len(ids), dtype=np.int64))
    found = catalogue.replace_strict(ids, positions, default=-1, return_dtype=pl.Int64)
    return found.to_numpy().astype(np.int64)


def align(
    matrix: NDArray[np.float32], rows: NDArray[np.int64], modality: str, where: str
) -> tuple[NDArray[np.float32], int]:
    """Give each item its feature row; an item without one gets the mean of all rows and is counted in the log.

    Args:
        matrix: float32 [R, F].
        rows: int64 [I], the matrix row of each item, -1 for none.
        modality: For messages.
        where: The data set, for messages.

    Returns:
        float32 [I, F] and the number of items without a row.

    Raises:
        DataError: No item has a row.
    """
    if np.array_equal(rows, np.arange(len(matrix))):  # spares large matrices a copy
        return matrix, 0
    missing = rows < 0
    n_missing = int(missing.sum())
    if n_missing == len(rows):
        raise DataError(
            f"{where}: no item of the catalogue has {modality} features; the ids of the features and of the "
            "interactions must be the same"
        )
    aligned = matrix[rows]
    if n_missing:
        aligned[missing] = matrix.mean(axis=0, dtype=np.float64)
        _log.info("%s: %d of %d items have no %s features: they get the mean", where, n_missing, len(rows), modality)
    return aligned, n_missing
