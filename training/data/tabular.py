"""Delimited and Parquet files as columns of strings, with errors that name file, line and value.

Everything is read as text first: an id such as ``007`` stays what it is, and a value that is not the number it should
be can be shown together with its line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.common.errors import DataError

_LINE = "__line__"


@dataclass(frozen=True)
class Table:
    """The rows of one file that are not blank.

    Attributes:
        path: Where it was read.
        frame: Columns of strings; null where a cell is empty.
        lines: Where each row stands in the file.
        unit: What ``lines`` counts: lines (tab-separated files), or data rows (a quoted cell may span several lines).
    """

    path: Path
    frame: pl.DataFrame
    lines: pl.Series
    unit: str

    def __len__(self) -> int:
        return self.frame.height

    def require(self, names: Iterable[str], purpose: str) -> None:
        """Check that columns exist.

        Raises:
            DataError: One is missing.
        """
        missing = [name for name in names if name not in self.frame.columns]
        if missing:
            raise DataError(
                f"{self.path}: no column {' or '.join(missing)} ({purpose}); the header names "
                f"{', '.join(self.frame.columns)}"
            )

    def first_of(self, names: Iterable[str]) -> str | None:
        """Return the first of several accepted column names that the table has, or None."""
        return next((name for name in names if name in self.frame.columns), None)

    def error(self, row: int, column: str, wanted: str) -> DataError:
        """Return the error for one cell of this table."""
        value = self.frame[column][row]
        came = "nothing" if value is None else f"'{value}'"
        return DataError(f"{self.path}, {self.unit} {self.lines[row]}: {column} is {came}, wanted {wanted}")

    def ids(self, column: str) -> pl.Series:
        """Return a column of external ids, String [rows].

        Raises:
            DataError: An id is empty.
        """
        series = self.frame[column]
        empty = (series.is_null() | (series == "")).arg_true()
        if len(empty):
            raise self.error(int(empty[0]), column, "an id")
        return series

    def unique_ids(self, column: str) -> pl.Series:
        """Return a column of external ids in which none occurs twice, String [rows].

        Raises:
            DataError: An id is empty or occurs twice.
        """
        series = self.ids(column)
        repeated = (~series.is_first_distinct()).arg_true()
        if len(repeated):
            raise self.error(int(repeated[0]), column, "an id that no row before has")
        return series

    def integers(self, column: str, least: int, most: int | None = None) -> NDArray[np.int64]:
        """Return a column of whole numbers within bounds, int64 [rows].

        Raises:
            DataError: A value is empty, not a whole number, or outside the bounds.
        """
        numbers = self.frame[column].str.strip_chars().cast(pl.Int64, strict=False)
        bad = numbers.is_null() | (numbers < least)
        wanted = f"a whole number from {least}"
        if most is not None:
            bad = bad | (numbers > most)
            wanted += f" to {most}"
        rows = bad.fill_null(value=True).arg_true()
        if len(rows):
            raise self.error(int(rows[0]), column, wanted)
        return numbers.to_numpy().astype(np.int64)

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return a column of finite numbers, float64 [rows].

        Raises:
            DataError: A value is empty, not a number, or not finite.
        """
        numbers = self.frame[column].str.strip_chars().cast(pl.Float64, strict=False)
        rows = (~numbers.is_finite().fill_null(value=False)).arg_true()
        if len(rows):
            raise self.error(int(rows[0]), column, "a finite number")
        return numbers.to_numpy().astype(np.float64)

    def times(self, column: str) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return a column of timestamps, int64 or float64 [rows]: whole numbers stay exact (nanoseconds need it).

        Raises:
            DataError: A value is empty, not a number, or not finite.
        """
        whole = self.frame[column].str.strip_chars().cast(pl.Int64, strict=False)
        return self.numbers(column) if whole.null_count() else whole.to_numpy().astype(np.int64)


def read_table(path: Path) -> Table:
    """Read a ``.csv``, a ``.parquet``, or a tab-separated file (every other name).

    Raises:
        DataError: The file is missing or is not such a table.
    """
    try:
        if path.suffix == ".parquet":
            frame, first, unit = _as_strings(pl.read_parquet(path)), 1, "row"
        elif path.suffix == ".csv":
            frame, first, unit = pl.read_csv(path, infer_schema=False), 1, "data row"
        else:
            frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
            first, unit = 2, "line"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a table of the kind its name says: {reason}") from error
    frame = frame.rename({name: name.strip() for name in frame.columns})
    columns = frame.columns
    kept = frame.with_row_index(_LINE, offset=first).filter(~pl.all_horizontal(pl.col(columns).is_null()))
    return Table(path, kept.select(columns), kept[_LINE], unit)


def find_table(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    """Return the one file ``stem`` + suffix in a folder, or None.

    Raises:
        DataError: There are several.
    """
    found = [folder / f"{stem}{suffix}" for suffix in suffixes if (folder / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None


def _as_strings(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn typed Parquet columns into the strings a CSV would hold; columns without a text form are left out."""
    columns = []
    for series in frame.get_columns():
        kind = series.dtype
        if kind == pl.List(pl.String):
            columns.append(series.list.join("|"))
        elif kind.is_temporal():
            columns.append(series.to_physical().cast(pl.String))
        elif kind.is_float() and series.drop_nulls().is_finite().all() and (series.drop_nulls() % 1 == 0).all():
            # Whole numbers that a null turned into floats: the id is 7, not 7.0.
            columns.append(series.cast(pl.Int64, strict=False).cast(pl.String))
        elif kind.is_numeric() or isinstance(kind, pl.String | pl.Boolean | pl.Categorical | pl.Enum):
            columns.append(series.cast(pl.String))
    return pl.DataFrame(columns)
