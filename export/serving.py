"""What the service needs from one bundle, loaded all or nothing. Needs neither torch nor training's models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle import IDS, INDEX, ITEMS, POPULARITY, SEEN, USER_TOWER, BundleReader, Manifest
from training.common.errors import BundleError
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


def load_for_serving(folder: Path) -> ServingBundle:
    """Load what the service runs, all or nothing.

    The offline artefacts (``model.onnx``, ``model.ts``) must be there but are neither hashed nor parsed.

    Args:
        folder: A bundle.

    Returns:
        The verified content.

    Raises:
        BundleError: A file is missing, altered or inconsistent with the others.
    """
    with BundleReader(folder) as reader:
        manifest = reader.manifest
        n_users, n_items = manifest.dataset.n_users, manifest.dataset.n_items
        items = reader.array(ITEMS)
        _expect(
            items.dtype == np.float32 and items.shape == (n_items, manifest.dimension),
            folder,
            f"{ITEMS} is {items.dtype} {items.shape}, wanted float32 {(n_items, manifest.dimension)}",
        )
        _expect(bool(np.isfinite(items).all()), folder, f"{ITEMS} holds NaN or infinite values")
        popularity = reader.array(POPULARITY)
        _expect(
            popularity.dtype == np.int64 and popularity.shape == (n_items,), folder, f"{POPULARITY} is not int64 [I]"
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
        for table in (users, item_ids):
            duplicate = table.first_duplicate()
            _expect(duplicate is None, folder, f"{IDS}: the id {duplicate!r} occurs twice")
        _expect(
            offsets.dtype == np.int64
            and seen_items.dtype == np.int32
            and offsets.shape == (n_users + 1,)
            and offsets[0] == 0
            and offsets[-1] == len(seen_items)
            and bool(np.all(np.diff(offsets) >= 0))
            and (len(seen_items) == 0 or (seen_items.min() >= 0 and seen_items.max() < n_items)),
            folder,
            f"{SEEN} is not a list of item rows per user",
        )
        return ServingBundle(
            manifest=manifest,
            user_tower=reader.read(USER_TOWER).tobytes(),
            index=reader.read(INDEX),
            items=items,  # type: ignore[arg-type]
            users=users,
            item_ids=item_ids,
            titles=titles,
            seen=SeenItems(offsets, seen_items),  # type: ignore[arg-type]
            popularity=popularity,  # type: ignore[arg-type]
        )
