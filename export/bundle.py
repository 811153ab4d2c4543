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
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.common.errors import BundleError, first_problem
from training.common.folders import write_atomically

SCHEMA_VERSION = 2
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
REQUIRED = (USER_TOWER, INDEX, ITEMS, IDS, SEEN, POPULARITY, CERTIFICATE)
EXCUSABLE = (MODEL_ONNX, TORCHSCRIPT, ITEM_TOWER)
"""Files that a bundle may lack if its manifest says why."""

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


class Recall(BaseModel):
    """How many of the exact best items an index finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(ge=1)
    value: float = Field(ge=0, le=1, description="mean over the users of the share found, after exact re-scoring")
    users: int = Field(ge=1, description="real user vectors it was measured with")


class IndexEntry(BaseModel):
    """The FAISS index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["flat", "hnsw", "ivf", "ivfpq", "custom"] = "flat"
    factory: str = Field(description="FAISS factory string")
    metric: Literal["inner_product"] = "inner_product"
    exact: bool
    search: dict[str, int] = Field(default_factory=dict, description="parameters of a search: nprobe, efSearch")
    recall: Recall | None = Field(default=None, description="measured at export; null for an exact index")


class AddedItems(BaseModel):
    """Items that joined a bundle without training, through the item tower; their rows follow the trained ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    base_version: str = Field(pattern="^[0-9a-f]{12}$", description="version of the bundle that they were added to")


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
    opset: int = Field(ge=1, description="ONNX operator set of the graphs")
    absent: dict[str, str] = Field(default_factory=dict, description="file that is not there to the reason")
    added: AddedItems | None = Field(default=None, description="items added after training")
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")
    provenance: dict[str, str | int | float | bool | None]
    files: dict[str, FileEntry]

    @property
    def n_items(self) -> int:
        """Items that can be recommended: those of the training data, and those added since."""
        return self.dataset.n_items + (self.added.count if self.added else 0)


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
            raise BundleError(f"{self.folder}: {MANIFEST}: {first_problem(error)}; export the bundle again") from error
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
        unexcused = sorted(set(self.manifest.absent) - set(EXCUSABLE))
        if unexcused:
            raise BundleError(f"{self.folder}: the manifest excuses {unexcused[0]!r}, which no bundle may lack")
        present = set(os.listdir(self._directory)) - {MANIFEST}  # noqa: PTH208 (a descriptor, not a path)
        required = set(REQUIRED) | (set(EXCUSABLE) - set(self.manifest.absent))
        missing = sorted((listed | required) - present | (required - listed))
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
