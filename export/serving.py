"""What the service needs from one bundle, loaded all or nothing. Needs neither torch nor training's models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from export.bundle import (
    CERTIFICATE,
    IDS,
    INDEX,
    ITEMS,
    MAX_CERTIFICATE_BYTES,
    POPULARITY,
    SEEN,
    USER_TOWER,
    BundleReader,
)
from export.manifest import Manifest
from export.onnx_safety import check_user_tower
from training.common.categories import ItemCategories
from training.common.compressed import are_items, are_offsets, ascend
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
        categories: Which items belong to which category; None where the data set has no categories.
        certificate: ``certificate.json``, a JSON object that is looked at no further.
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
    categories: ItemCategories | None
    certificate: bytes


def _expect(condition: bool, folder: Path, message: str) -> None:
    if not condition:
        raise BundleError(f"{folder}: {message}; export the bundle again")


def _certificate(reader: BundleReader) -> bytes:
    """Return the certificate as it stands: what it says is for others to judge, but it is a document that can be sent.

    Raises:
        BundleError: It is altered, too large, or no JSON object.
    """
    size = reader.manifest.files[CERTIFICATE].size
    _expect(size <= MAX_CERTIFICATE_BYTES, reader.folder, f"{CERTIFICATE} is larger than {MAX_CERTIFICATE_BYTES} bytes")
    content = bytes(reader.read(CERTIFICATE))
    try:
        document = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise BundleError(f"{reader.folder}: {CERTIFICATE} is no JSON: {error}; export the bundle again") from error
    _expect(isinstance(document, dict), reader.folder, f"{CERTIFICATE} is no JSON object")
    return content


def load_for_serving(folder: Path) -> ServingBundle:
    """Load what the service runs, all or nothing.

    The offline artefacts (``model.onnx``, ``model.ts``, ``model.pt2``, the item tower and what is said of them) are
    neither hashed nor parsed, but for ``certificate.json``, which the service hands out; they must be there all the
    same, but for those that the manifest says are absent.

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
            categories = ItemCategories.from_arrays(ids)
        except (KeyError, ValueError) as error:
            raise BundleError(f"{folder}: {IDS} or {SEEN} is incomplete: {error}; export the bundle again") from error
        _expect(len(users) == n_users, folder, f"{IDS} names {len(users)} users, the manifest {n_users}")
        _expect(
            len(item_ids) == n_items and len(titles) == n_items,
            folder,
            f"{IDS} names {len(item_ids)} items and {len(titles)} titles, the manifest {n_items}",
        )
        _expect(
            categories is None or are_items(categories.items, n_items),
            folder,
            f"{IDS}: the categories name items that are not there",
        )
        for table, what in ((users, "user ids"), (item_ids, "item ids"), (titles, "titles")):
            _expect(table.is_text(), folder, f"{IDS}: the {what} are not valid UTF-8")
        for table in (users, item_ids):
            duplicate = table.first_duplicate()
            _expect(duplicate is None, folder, f"{IDS}: the id {shown(duplicate or '')} occurs twice")
        _expect(
            are_items(seen_items, manifest.dataset.n_items) and are_offsets(offsets, n_users, len(seen_items)),
            folder,
            f"{SEEN} is not a list of item rows per user",
        )
        _expect(ascend(offsets, seen_items), folder, f"{SEEN}: the seen items of a user are not strictly ascending")
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
            categories=categories,
            certificate=_certificate(reader),
        )
