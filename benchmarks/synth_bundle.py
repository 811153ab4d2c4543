"""Bundles of any size without training: made-up vectors for measuring speed, and no model.

Service and exporter read them like any other bundle. The manifest says at every turn what they are, the four forms of a
model are absent, and ``dvib-export verify`` refuses them: there is nothing to prove.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from benchmarks.index_data import BLOCK, CENTRES, Vectors
from export import bundle
from export.index import build_index
from export.index_search import sample_users
from export.index_tuning import IndexChoice
from export.manifest import DatasetEntry, IndexEntry, Manifest
from export.outline import LARGEST_GRAPH_BYTES
from export.serving import SeenItems
from training.common.errors import ConfigError, ExportError
from training.common.folders import atomic_folder
from training.common.strings import StringTable

MODEL = "synthetic"
"""What the manifest gives as model and preset."""
NO_MODEL = "synthetic: vectors drawn at random to measure speed, there is no model"
_OPSET, _IR_VERSION = 18, 10
_ITEMS_PER_CENTRE = 50
_MOST_RECALL_USERS = 1000
_MOST_RECALL_SCORES = 4_000_000_000
"""The recall of an index takes a product of all items with some users: fewer users for more items."""

Step = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a bundle holds.

    Attributes:
        items: I.
        users: U.
        dimension: D.
        seen: Items that every user has seen.
        index: As in ``dvib-export build --index``.
        seed: Of all that is drawn.
    """

    items: int
    users: int
    dimension: int = 128
    seen: int = 20
    index: str = "flat"
    seed: int = 0

    def check(self) -> None:
        """Refuse before the work what would be refused after it.

        Raises:
            ConfigError: More seen items than items, or a table of user vectors that no ONNX graph can hold.
        """
        if self.seen > self.items:
            raise ConfigError(f"--seen {self.seen}: there are only {self.items} items")
        size = 4 * self.users * self.dimension
        if size > LARGEST_GRAPH_BYTES:
            most = LARGEST_GRAPH_BYTES // (4 * self.dimension)
            raise ConfigError(
                f"--users {self.users}: the user tower would hold {size / 1e9:.2f} GB, and protobuf ends at 2 GB; "
                f"at most {most} users of dimension {self.dimension}"
            )

    @property
    def name(self) -> str:
        """Name of the data set that there is not."""
        return f"synthetic-{self.items}x{self.users}-seed{self.seed}"

    @property
    def fingerprint(self) -> str:
        """Tells one bundle's content from another's."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """How often ``write_bundle`` says what it does."""
        return len(_starts(self.items)) + len(_starts(self.users)) + 3


def _starts(rows: int) -> range:
    return range(0, rows, BLOCK)


def write_bundle(options: Options, out: Path, on_step: Step = lambda _: None) -> Manifest:
    """Write a bundle; the same options give the same bytes, but for the index that ``auto`` chooses.

    Items have the structure of ``benchmarks.index_data``; each user is near one item. A part of the items that a user
    has seen is of the same cluster as that item, so that they are in the way of a search as in real data; the rest is
    drawn with a chance that falls with the root of the row. Item vectors go to the file block by block; in memory are
    the users' vectors and what making the index takes.

    Args:
        options: What it holds.
        out: The bundle's folder; an existing one is replaced in a single step.
        on_step: Told what begins.

    Returns:
        The manifest as written.

    Raises:
        ConfigError: See ``Options.check``.
        ExportError: ``out`` holds something that is no bundle, or the index cannot be made.
    """
    options.check()
    if out.exists() and not bundle.is_bundle(out):
        raise ExportError(f"{out} is no bundle and is not replaced; choose another --out")
    source = Vectors(options.dimension, min(CENTRES, -(-options.items // _ITEMS_PER_CENTRE)), options.seed)
    with atomic_folder(out) as folder:
        items, clusters = _write_items(options, source, folder / bundle.ITEMS, on_step)
        users, seen = _draw_users(options, source, items, clusters, on_step)
        on_step("writing users, ids and seen items")
        (folder / bundle.USER_TOWER).write_bytes(look_up_tower(users))
        _write_rows(options, seen, folder)
        on_step(f"indexing the items: {options.index}")
        index = _write_index(options, items, users, seen, folder / bundle.INDEX)
        on_step("hashing")
        (folder / bundle.CERTIFICATE).write_text(json.dumps({"no_certificate": NO_MODEL}) + "\n", "utf-8")
        return _write_manifest(options, index, max(len(seen.items), 1), folder)


def look_up_tower(users: NDArray[np.float32]) -> bytes:
    """Return a graph ``users`` int64 [B] → ``vectors`` float32 [B, D] that looks rows of a table up."""
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=users.shape, raw_data=users.tobytes())
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "users"], ["vectors"], axis=0)],
        "user_tower",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", users.shape[1]])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


def _write_items(
    options: Options, source: Vectors, path: Path, on_step: Step
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Write the item vectors; return them, as they lie in the file, and each one's cluster."""
    items = open_memmap(path, mode="w+", dtype=np.float32, shape=(options.items, options.dimension), version=(1, 0))
    clusters = np.empty(options.items, dtype=np.int32)
    for start in _starts(options.items):
        on_step(f"drawing item {start + 1} of {options.items}")
        part = slice(start, min(start + BLOCK, options.items))
        items[part], clusters[part] = source.items(part.stop - start)
    items.flush()
    return items, clusters


def _draw_users(
    options: Options, source: Vectors, items: NDArray[np.float32], clusters: NDArray[np.int32], on_step: Step
) -> tuple[NDArray[np.float32], SeenItems]:
    """Draw each user near an item, and what the user has seen."""
    users = np.empty((options.users, options.dimension), dtype=np.float32)
    seen = np.empty((options.users, options.seen), dtype=np.int32)
    drawn = _SeenRows(clusters, source.generator)
    for start in _starts(options.users):
        on_step(f"drawing user {start + 1} of {options.users}")
        stop = min(start + BLOCK, options.users)
        anchors = source.generator.integers(options.items, size=stop - start)
        users[start:stop] = source.near(items[anchors])
        for row, anchor in enumerate(anchors.tolist(), start):
            seen[row] = drawn.of(anchor, options.seen)
    offsets = np.arange(options.users + 1, dtype=np.int64) * options.seen
    if options.seen:
        return users, SeenItems(offsets, seen.reshape(-1))
    # A data set without any interaction is none, and no manifest can tell of one: the last user has seen one item.
    offsets[-1] = 1
    return users, SeenItems(offsets, np.zeros(1, dtype=np.int32))


class _SeenRows:
    """Draws what users have seen.

    Args:
        clusters: int32 [I], the cluster of each item.
        generator: Where it is drawn from.
    """

    def __init__(self, clusters: NDArray[np.int32], generator: np.random.Generator) -> None:
        self._clusters = clusters
        self._generator = generator
        self._by_cluster = np.argsort(clusters, kind="stable").astype(np.int32)
        self._ends = np.cumsum(np.bincount(clusters))

    def of(self, anchor: int, count: int) -> NDArray[np.int32]:
        """Return so many distinct rows, ascending: about a third of them of the cluster of an item."""
        cluster, n_items = self._clusters[anchor], len(self._clusters)
        own = self._by_cluster[self._ends[cluster - 1] if cluster else 0 : self._ends[cluster]]
        near = own[self._generator.integers(len(own), size=count // 2)]
        popular = (n_items * self._generator.random(count) ** 2).astype(np.int32)
        rows = np.unique(np.concatenate([near, popular]))
        if len(rows) < count:
            rest = np.setdiff1d(np.arange(n_items, dtype=np.int32), rows, assume_unique=True)
            rows = np.append(rows, self._generator.choice(rest, count - len(rows), replace=False))
        return np.sort(self._generator.permutation(rows)[:count])


def _write_rows(options: Options, seen: SeenItems, folder: Path) -> None:
    named = {
        "users": ("u", options.users),
        "items": ("i", options.items),
        "titles": ("Made-up item ", options.items),
    }
    arrays: dict[str, NDArray[np.generic]] = {}
    for prefix, (word, count) in named.items():
        arrays |= StringTable.of(_numbered(word, count)).to_arrays(prefix)
    save_file(arrays, folder / bundle.IDS)
    save_file({"offsets": seen.offsets, "items": seen.items}, folder / bundle.SEEN)
    popularity = np.bincount(seen.items, minlength=options.items).astype(np.int64)
    np.save(folder / bundle.POPULARITY, popularity, allow_pickle=False)


def _numbered(word: str, count: int) -> Iterator[str]:
    width = len(str(count - 1))
    return (f"{word}{row:0{width}d}" for row in range(count))


def _write_index(
    options: Options, items: NDArray[np.float32], users: NDArray[np.float32], seen: SeenItems, path: Path
) -> IndexEntry:
    most = max(1, min(_MOST_RECALL_USERS, _MOST_RECALL_SCORES // options.items))
    rows = sample_users(options.users, most)
    return build_index(items, path, users[rows], IndexChoice(options.index), [seen.of(row) for row in rows.tolist()])


def _write_manifest(options: Options, index: IndexEntry, n_train: int, folder: Path) -> Manifest:
    drawn: dict[str, Any] = asdict(options)
    return bundle.write_manifest(
        folder,
        model=MODEL,
        variant="none",
        preset=MODEL,
        dataset=DatasetEntry(
            name=options.name,
            fingerprint=options.fingerprint,
            n_users=options.users,
            n_items=options.items,
            n_train=n_train,
            modalities={},
        ),
        dimension=options.dimension,
        index=index,
        opset=_OPSET,
        absent=dict.fromkeys(bundle.EXCUSABLE, NO_MODEL),
        metrics={},
        provenance={
            "synthetic": True,
            "note": NO_MODEL,
            "made_by": "dvib-bench synth-bundle",
            **{f"option.{name}": value for name, value in drawn.items()},
            **{f"version.{name}": importlib.metadata.version(name) for name in ("dvib", "numpy")},
            "version.faiss": faiss.__version__,
        },
    )
