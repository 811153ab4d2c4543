"""What the service needs from one bundle, loaded all or nothing. Needs neither torch nor training's models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import IDS, INDEX, ITEMS, POPULARITY, SEEN, USER_TOWER, BundleReader
from export.manifest import Manifest
from export.onnx_safety import check_user_tower
from training.common.errors import BundleError, shown
from training.common.strings import StringTable


@dataclass(frozen=True)
class SeenItems:
    """Per-user training items in compressed rows: user ``u`` has ``items[offsets[u]:offsets[u + 1]]``, ascending.

    Attributes:
        offsets: int64 [U + 1].
        items: int32 [number of training interactions].
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]

    def of(self, user: int) -> NDArray[np.int32]:
        """Return the item rows a user has interacted with in training, ascending."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True)
class ServingBundle:
    """Everything a service needs from one bundle, verified and checked for consistency.

    Attributes:
        manifest: The bundle's self-description.
        user_tower: Serialised ONNX graph, ``users`` int64 [B] → ``vectors`` float32 [B, D].
        index: Serialised FAISS index over ``items``, inner product.
        items: float32 [I, D], the item vectors.
        users: External user ids, row r is user r.
        item_ids: External item ids.
        titles: Item titles; an empty string where there is none.
        seen: Training items per user.
        popularity: int64 [I], training interactions per item.
    """

    manifest: Manifest
    user_tower: bytes
    index: memoryview
    items: NDArray[np.float32]
    users: StringTable
    item_ids: StringTable
    titles: StringTable
    seen: SeenItems
    popularity: NDArray[np.int64]


def _expect(condition: bool, folder: Path, message: str) -> None:
    if not condition:
        raise BundleError(f"{folder}: {message}; export the bundle again")


def _are_rows(offsets: NDArray[Any], items: NDArray[Any], n_users: int, n_items: int) -> bool:
    if offsets.dtype != np.int64 or offsets.shape != (n_users + 1,) or items.dtype != np.int32 or items.ndim != 1:
        return False
    # Neighbours are compared and not subtracted: a difference of two int64 may wrap around.
    ordered = offsets[0] == 0 and offsets[-1] == len(items) and not np.any(offsets[1:] < offsets[:-1])
    return bool(ordered) and (len(items) == 0 or bool(items.min() >= 0 and items.max() < n_items))


def _ascend(offsets: NDArray[Any], items: NDArray[Any]) -> bool:
    """Counting and dropping seen items relies on each user's rows being distinct."""
    ascending = items[1:] > items[:-1]
    starts = offsets[1:-1]
    starts = starts[(starts > 0) & (starts < len(items))]
    ascending[starts - 1] = True  # between the last item of one user and the first of the next
    return bool(ascending.all())


def load_for_serving(folder: Path) -> ServingBundle:
    """Load what the service runs, all or nothing.

    The offline artefacts (``model.onnx``, ``model.ts``, ``model.pt2``, the item tower and what is said of them) are
    neither hashed nor parsed; they must be there all the same, but for those that the manifest says are absent.

    Args:
        folder: A bundle.

    Returns:
        The verified content.

    Raises:
        BundleError: A file is missing, altered or inconsistent with the others.
    """
    with BundleReader(folder) as reader:
        manifest = reader.manifest
        n_users, n_items = manifest.dataset.n_users, manifest.n_items
        items = reader.array(ITEMS)
        _expect(
            items.dtype == np.float32 and items.shape == (n_items, manifest.dimension),
            folder,
            f"{ITEMS} is {items.dtype} {items.shape}, wanted float32 {(n_items, manifest.dimension)}",
        )
        _expect(bool(np.isfinite(items).all()), folder, f"{ITEMS} holds NaN or infinite values")
        popularity: NDArray[Any] = reader.array(POPULARITY)
        _expect(
            popularity.dtype == np.int64 and popularity.shape == (n_items,) and bool((popularity >= 0).all()),
            folder,
            f"{POPULARITY} is not a number of interactions, int64, for each of {n_items} items",
        )
        ids = reader.tensors(IDS)
        seen_arrays = reader.tensors(SEEN)
        try:
            users, item_ids, titles = (StringTable.from_arrays(ids, kind) for kind in ("users", "items", "titles"))
            offsets, seen_items = seen_arrays["offsets"], seen_arrays["items"]
        except (KeyError, ValueError) as error:
            raise BundleError(f"{folder}: {IDS} or {SEEN} is incomplete: {error}; export the bundle again") from error
        _expect(len(users) == n_users, folder, f"{IDS} names {len(users)} users, the manifest {n_users}")
        _expect(
            len(item_ids) == n_items and len(titles) == n_items,
            folder,
            f"{IDS} names {len(item_ids)} items and {len(titles)} titles, the manifest {n_items}",
        )
        for table, what in ((users, "user ids"), (item_ids, "item ids"), (titles, "titles")):
            _expect(table.is_text(), folder, f"{IDS}: the {what} are not valid UTF-8")
        for table in (users, item_ids):
            duplicate = table.first_duplicate()
            _expect(duplicate is None, folder, f"{IDS}: the id {shown(duplicate or '')} occurs twice")
        _expect(
            _are_rows(offsets, seen_items, n_users, manifest.dataset.n_items),
            folder,
            f"{SEEN} is not a list of item rows per user",
        )
        _expect(_ascend(offsets, seen_items), folder, f"{SEEN}: the seen items of a user are not strictly ascending")
        user_tower = reader.read(USER_TOWER).tobytes()
        try:
            check_user_tower(user_tower, USER_TOWER, n_users, manifest.dimension)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        return ServingBundle(
            manifest=manifest,
            user_tower=user_tower,
            index=reader.read(INDEX),
            items=items,  # type: ignore[arg-type]
            users=users,
            item_ids=item_ids,
            titles=titles,
            seen=SeenItems(offsets, seen_items),  # type: ignore[arg-type]
            popularity=popularity,
        )
