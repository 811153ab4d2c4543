"""Small valid bundles for tests, made with numpy, onnx and faiss alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import faiss
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from export import bundle
from export.manifest import DatasetEntry, IndexEntry, Manifest
from training.common.categories import ItemCategories
from training.common.strings import StringTable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Content:
    """What a test bundle holds: the ground truth for a test's own brute force.

    Attributes:
        users: float32 [U, D].
        items: float32 [I, D]. Rows of the last third repeat rows of the first, so every user has ties.
        user_ids, item_ids, titles: external names; a missing title is an empty string.
        seen: Per user, ascending item rows. User 0 has seen everything, user 1 all but two items, user 2 nothing.
        popularity: int64 [I].
        categories: Every item is "Everything", none "Nothing", the first alone "Einzelstück"; the others are drawn, and
            an item may be in none. None for a bundle without categories.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    seen: list[NDArray[np.int32]]
    popularity: NDArray[np.int64]
    categories: ItemCategories | None = None


def make_content(
    *, n_users: int = 12, n_items: int = 60, dimension: int = 7, seen_share: float = 0.2, levels: int = 0, seed: int = 0
) -> Content:
    """Draw the content of a bundle.

    Args:
        n_users: U, at least 4. User 3's vector is zero: all its scores are equal.
        n_items: I.
        dimension: D.
        seen_share: Mean share of items that a user has seen.
        levels: Where positive, vector entries are whole numbers from ``-levels`` to ``levels``: exact ties everywhere.
        seed: Of the vectors; the seen items depend on the counts alone.
    """
    draw = np.random.default_rng(seed)

    def vectors(rows: int) -> NDArray[np.float32]:
        if levels:
            return draw.integers(-levels, levels + 1, (rows, dimension)).astype(np.float32)
        return draw.standard_normal((rows, dimension)).astype(np.float32)

    users, items = vectors(n_users), vectors(n_items)
    users[3] = 0
    repeats = n_items // 3
    items[n_items - repeats :] = items[:repeats]
    everything = np.arange(n_items, dtype=np.int32)
    history = np.random.default_rng((n_users, n_items))
    seen = [np.flatnonzero(history.random(n_items) < seen_share).astype(np.int32) for _ in range(n_users)]
    seen[0], seen[1], seen[2] = everything, np.delete(everything, [1, n_items - 2]), everything[:0]
    return Content(
        users=users,
        items=items,
        user_ids=[f"u-{row}" if row % 5 else f"Zoë {row}/ü&=" for row in range(n_users)],
        item_ids=[f"movie {row}" if row % 7 else f"фильм {row}" for row in range(n_items)],
        titles=["" if row % 4 == 1 else f"Title № {row}" for row in range(n_items)],
        seen=seen,
        popularity=np.bincount(np.concatenate(seen), minlength=n_items).astype(np.int64),
        categories=make_categories(n_items),
    )


def make_categories(n_items: int) -> ItemCategories:
    """Return categories of every size, which depend on the number of items alone."""
    draw = np.random.default_rng(n_items)
    members: dict[str, list[int]] = {"Everything": list(range(n_items)), "Nothing": [], "Einzelstück": [0]}
    for share, name in ((0.05, "rare"), (0.3, "Children's"), (0.6, "боевик & ?category=")):
        members[name] = np.flatnonzero(draw.random(n_items) < share).tolist()
    names = tuple(sorted(members))
    return ItemCategories(
        names,
        np.cumsum([0, *(len(members[name]) for name in names)], dtype=np.int64),
        np.array([row for name in names for row in members[name]], dtype=np.int32),
    )


def cancelling(n_items: int = 300, n_users: int = 12) -> Content:
    """Scores that differ in float64, but whose float32 sums are noise, whatever the SIMD width up to 16.

    In each lane a product of millions comes first, then a small one, then the large one again with the other sign.
    """
    base = make_content(n_users=n_users, n_items=n_items, dimension=48, seen_share=0.02, seed=5)
    users, items = base.users.copy(), base.items.copy()
    items[:, :16] = items[:, 32:] = 1000 + np.arange(n_items)[:, None] % 7
    users[:, :16], users[:, 32:] = 4000, -4000
    users[:, 16:32] *= 0.05
    return replace(base, items=items, users=users)


def gather_tower(users: NDArray[np.float32]) -> bytes:
    """Return a serialised graph ``users`` int64 [B] → ``vectors`` float32 [B, D] that looks rows up."""
    dimension = users.shape[1]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "users"], ["vectors"], axis=0)],
        "user_tower",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["B"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["B", dimension])],
        [numpy_helper.from_array(users, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def flat_index(items: NDArray[np.float32]) -> bytes:
    """Return a serialised flat inner-product index."""
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return bytes(faiss.serialize_index(index).tobytes())


def write_bundle(folder: Path, content: Content, *, variant: str = "none", name: str = "toy") -> Manifest:
    """Write a complete bundle into a new folder; the offline artefacts are dummy bytes."""
    folder.mkdir(parents=True)
    for offline in (bundle.MODEL_ONNX, bundle.TORCHSCRIPT, bundle.PROGRAM):
        (folder / offline).write_bytes(b"offline artefact, never read by the service")
    (folder / bundle.CERTIFICATE).write_text('{"toy": "no proof"}', "utf-8")
    (folder / bundle.USER_TOWER).write_bytes(gather_tower(content.users))
    (folder / bundle.INDEX).write_bytes(flat_index(content.items))
    np.save(folder / bundle.ITEMS, content.items)
    np.save(folder / bundle.POPULARITY, content.popularity)
    names = {"users": content.user_ids, "items": content.item_ids, "titles": content.titles}
    save_file(
        {
            key: array
            for kind, strings in names.items()
            for key, array in StringTable.of(strings).to_arrays(kind).items()
        }
        | (content.categories.to_arrays() if content.categories else {}),
        folder / bundle.IDS,
    )
    offsets = np.zeros(len(content.seen) + 1, dtype=np.int64)
    np.cumsum([len(rows) for rows in content.seen], out=offsets[1:])
    save_file({"offsets": offsets, "items": np.concatenate(content.seen)}, folder / bundle.SEEN)
    return seal(folder, content, variant=variant, name=name)


def seal(folder: Path, content: Content, *, variant: str = "none", name: str = "toy") -> Manifest:
    """Write the manifest anew, after a test has changed a file and wants the hashes to fit."""
    (folder / bundle.MANIFEST).unlink(missing_ok=True)
    (n_users, dimension), n_items = content.users.shape, len(content.items)
    return bundle.write_manifest(
        folder,
        model="vbpr",
        variant=variant,
        preset="paper",
        dataset=DatasetEntry(
            name=name,
            fingerprint="0" * 64,
            n_users=n_users,
            n_items=n_items,
            n_train=int(content.popularity.sum()),
            modalities={"text": 4},
        ),
        dimension=dimension,
        index=IndexEntry(factory="Flat", exact=True),
        opset=18,
        absent={bundle.ITEM_TOWER: "a toy has none"},
        metrics={"test": {"ndcg@10": 0.125}},
        provenance={"seed": 0},
    )
