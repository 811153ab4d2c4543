"""The data set as one immutable, typed value. Everything downstream sees only this."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.common.categories import ItemCategories
from training.common.compressed import are_items
from training.common.errors import DataError
from training.common.strings import StringTable

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Interactions:
    """Observed user–item pairs in a fixed order.

    Attributes:
        users: int64 [n], user rows.
        items: int64 [n], item rows.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.users.shape != self.items.shape or self.users.ndim != 1:
            raise DataError(f"interactions need two equal columns, got {self.users.shape} and {self.items.shape}")
        for column in (self.users, self.items):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Dataset:
    """Users, items, three splits and the features of every item.

    Attributes:
        name: For people and manifests.
        user_ids: External user ids; row r is user r.
        item_ids: External item ids; row r is item r.
        titles: Item titles, "" where there is none.
        splits: Interactions of ``train``, ``valid`` and ``test``.
        features: Modality name → float32 [I, F_m], finite, sorted by name.
        notes: What the reader did (thresholds, split rule, items without features), kept in every checkpoint.
        categories: Which items belong to which category, for filters at serving: nothing is trained on it. None where
            the items table has no such column.
    """

    name: str
    user_ids: StringTable
    item_ids: StringTable
    titles: StringTable
    splits: Mapping[Split, Interactions]
    features: Mapping[str, NDArray[np.float32]]
    notes: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    categories: ItemCategories | None = None

    def __post_init__(self) -> None:
        for kind, table in (("user", self.user_ids), ("item", self.item_ids)):
            duplicate = table.first_duplicate()
            if duplicate is not None:
                raise DataError(f"{self.name}: the {kind} id '{duplicate}' occurs twice; ids must be unique")
        if len(self.titles) != self.n_items:
            raise DataError(f"{self.name}: {len(self.titles)} titles for {self.n_items} items")
        if self.categories is not None and not are_items(self.categories.items, self.n_items):
            raise DataError(f"{self.name}: the categories name items beyond the {self.n_items} that there are")
        for split in SPLITS:
            part = self.splits[split]
            if len(part) == 0:
                raise DataError(
                    f"{self.name}: the {split} split is empty; every split needs interactions "
                    "(check x_label, or the rating threshold and the split rule)"
                )
            for rows, count, kind in ((part.users, self.n_users, "user"), (part.items, self.n_items, "item")):
                if rows.min() < 0 or rows.max() >= count:
                    raise DataError(f"{self.name}: {split} names {kind} row {rows.max()}, there are {count}")
        for modality, matrix in self.features.items():
            check_features(matrix, modality, self.n_items, self.name)
            matrix.flags.writeable = False
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))
        object.__setattr__(self, "features", MappingProxyType(dict(sorted(self.features.items()))))
        object.__setattr__(self, "notes", MappingProxyType(dict(self.notes)))

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items, I."""
        return len(self.item_ids)

    @property
    def train(self) -> Interactions:
        """The training interactions."""
        return self.splits["train"]

    @property
    def modalities(self) -> dict[str, int]:
        """Modality name → feature width, sorted by name."""
        return {name: int(matrix.shape[1]) for name, matrix in self.features.items()}

    def popularity(self) -> NDArray[np.int64]:
        """Return the number of training interactions of each item, int64 [I]."""
        return np.bincount(self.train.items, minlength=self.n_items).astype(np.int64)

    def fingerprint(self) -> str:
        """Return the SHA-256 over ids, splits and features: equal exactly where training would see the same data."""
        digest = hashlib.sha256()
        for table in (self.user_ids, self.item_ids):
            for array in table.to_arrays("").values():
                digest.update(array.tobytes())
            digest.update(len(table).to_bytes(8, "little"))
        for split in SPLITS:
            digest.update(len(self.splits[split]).to_bytes(8, "little"))
            digest.update(self.splits[split].users.tobytes())
            digest.update(self.splits[split].items.tobytes())
        for modality, matrix in self.features.items():
            digest.update(f"{modality}{matrix.shape}".encode())
            digest.update(np.ascontiguousarray(matrix).data)
        return digest.hexdigest()


def check_features(matrix: NDArray[np.generic], modality: str, n_items: int, where: str) -> None:
    """Refuse a feature matrix that a model could not use.

    Raises:
        DataError: Not a two-dimensional float32 matrix with one finite row per item.
    """
    if matrix.ndim != 2 or matrix.shape[0] != n_items:
        rows = matrix.shape[0] if matrix.ndim else 0
        raise DataError(
            f"{where}: the {modality} features have {rows} rows (shape {matrix.shape}), wanted one for each of "
            f"{n_items} items; rebuild the matrix, or add feature_rows.csv to say which item each row belongs to"
        )
    if matrix.dtype != np.float32:
        raise DataError(f"{where}: the {modality} features are {matrix.dtype}, wanted float32")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise DataError(
            f"{where}: the {modality} features hold NaN or infinite values in {len(bad)} rows, first in row {bad[0]}; "
            "replace them"
        )
