"""The bundle: the one contract between the exporter, which writes it, and the service, which reads it.

A bundle is an immutable folder. ``manifest.json`` names every other file with its SHA-256 and size; a reader opens each
file once, without following links, hashes what it opened and parses those very bytes. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.common.errors import BundleError
from training.common.folders import write_atomically
from training.common.strings import StringTable

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL_ONNX = "model.onnx"
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
TORCHSCRIPT = "model.ts"
INDEX = "items.faiss"
ITEMS = "items.npy"
IDS = "ids.safetensors"
SEEN = "seen.safetensors"
POPULARITY = "popularity.npy"
CERTIFICATE = "certificate.json"
REQUIRED = (MODEL_ONNX, USER_TOWER, TORCHSCRIPT, INDEX, ITEMS, IDS, SEEN, POPULARITY, CERTIFICATE)

_MAX_MANIFEST_BYTES = 16 * 2**20
_NO_VERSION = "0" * 12


class FileEntry(BaseModel):
    """SHA-256 and size of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class DatasetEntry(BaseModel):
    """What the bundle was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str = Field(description="SHA-256 over ids, splits and features")
    n_users: int = Field(ge=1)
    n_items: int = Field(ge=1)
    n_train: int = Field(ge=1, description="training interactions")
    modalities: dict[str, int] = Field(description="modality name to feature width")


class IndexEntry(BaseModel):
    """The FAISS index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str = Field(description="FAISS factory string")
    metric: Literal["inner_product"] = "inner_product"
    exact: bool


class Manifest(BaseModel):
    """The self-description of a bundle, stored as ``manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_name: Literal["dvib.bundle"] = "dvib.bundle"
    schema_version: int = SCHEMA_VERSION
    version: str = Field(pattern="^[0-9a-f]{12}$", description="identifies the content: a hash over all the rest")
    model: str
    variant: Literal["none", "constant", "adaptive"]
    preset: str
    dataset: DatasetEntry
    dimension: int = Field(ge=1, description="length of user and item vectors")
    index: IndexEntry
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")
    provenance: dict[str, str | int | float | bool | None]
    files: dict[str, FileEntry]


def content_version(manifest: Manifest) -> str:
    """Return the bundle version: 12 hex digits of a hash over everything else in the manifest, file hashes included."""
    document = manifest.model_dump(mode="json", exclude={"version"})
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def hash_file(path: Path) -> FileEntry:
    """Hash a file that this process has just written."""
    with path.open("rb") as stream:
        return FileEntry(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), size=path.stat().st_size)


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Hash every file of a finished folder and write its manifest.

    Args:
        folder: Holds all the other files.
        fields: The manifest's fields except ``files`` and ``version``.

    Returns:
        The manifest written.
    """
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    draft = Manifest(version=_NO_VERSION, files=files, **fields)
    manifest = draft.model_copy(update={"version": content_version(draft)})
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def is_bundle(folder: Path) -> bool:
    """Tell whether a folder says of itself that it is a bundle, of whatever schema version."""
    try:
        document = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("schema_name") == "dvib.bundle"


def _open_without_links(directory: int, name: str, where: Path) -> int:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        raise BundleError(f"{where}: cannot open {name}: {error.strerror}; export the bundle again") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{where}: {name} is not a regular file; export the bundle again")
    return descriptor


class BundleReader:
    """Reads files of one bundle, each verified against the manifest before it is handed out.

    Args:
        folder: The bundle's folder.

    Raises:
        BundleError: The folder is no bundle of this schema version, or its set of files differs from the manifest's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"no bundle at {folder}: {error.strerror}; run dvib-export build first") from error
        try:
            self.manifest = self._read_manifest()
            self._check_names()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BundleReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the folder."""
        self.close()

    def close(self) -> None:
        """Close the folder. Files already read stay valid."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _read_manifest(self) -> Manifest:
        descriptor = _open_without_links(self._directory, MANIFEST, self.folder)
        with os.fdopen(descriptor, "rb") as stream:
            raw = stream.read(_MAX_MANIFEST_BYTES + 1)
        if len(raw) > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{self.folder}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
        try:
            manifest = Manifest.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise BundleError(f"{self.folder}: {MANIFEST}: {place}: {first['msg']}; export the bundle again") from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise BundleError(
                f"{self.folder}: bundle schema version {manifest.schema_version}, this program reads {SCHEMA_VERSION}; "
                "export the bundle again"
            )
        if manifest.version != content_version(manifest):
            raise BundleError(
                f"{self.folder}: {MANIFEST} was changed: its version does not fit its content; export the bundle again"
            )
        return manifest

    def _check_names(self) -> None:
        listed = set(self.manifest.files)
        unsafe = sorted(name for name in listed if "/" in name or "\0" in name or name in {"", ".", "..", MANIFEST})
        if unsafe:
            raise BundleError(f"{self.folder}: the manifest lists an impossible file name {unsafe[0]!r}")
        present = set(os.listdir(self._directory)) - {MANIFEST}  # noqa: PTH208 (a descriptor, not a path)
        missing = sorted((listed | set(REQUIRED)) - present | (set(REQUIRED) - listed))
        if missing:
            raise BundleError(f"{self.folder}: {missing[0]} is missing; export the bundle again")
        extra = sorted(present - listed)
        if extra:
            raise BundleError(f"{self.folder}: {extra[0]} is not listed in the manifest; export the bundle again")

    def read(self, name: str) -> memoryview:
        """Return the verified content of one file.

        Args:
            name: A file named in the manifest.

        Returns:
            A read-only view of the mapped file; the mapping lives as long as the view.

        Raises:
            BundleError: Size or hash differ from the manifest.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.folder}: the bundle holds no {name}")
        descriptor = _open_without_links(self._directory, name, self.folder)
        try:
            size = os.fstat(descriptor).st_size
            if size != entry.size:
                raise BundleError(
                    f"{self.folder}: {name} has {size} bytes, the manifest says {entry.size}; export the bundle again"
                )
            view = memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b"")
        finally:
            os.close(descriptor)
        if hashlib.sha256(view).hexdigest() != entry.sha256:
            raise BundleError(f"{self.folder}: {name} differs from its hash in the manifest; export the bundle again")
        return view

    def verify_all(self) -> None:
        """Hash every file of the bundle.

        Raises:
            BundleError: At the first file that differs.
        """
        for name in self.manifest.files:
            self.read(name)

    def array(self, name: str) -> NDArray[np.generic]:
        """Return a verified ``.npy`` file as an array (never unpickled)."""
        try:
            return np.asarray(np.load(io.BytesIO(self.read(name)), allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise BundleError(f"{self.folder}: {name} is no plain array: {error}") from error

    def tensors(self, name: str) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of a verified safetensors file."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return dict(load(self.read(name).tobytes()))
        except (SafetensorError, ValueError) as error:
            raise BundleError(f"{self.folder}: {name} is no safetensors file: {error}") from error


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
