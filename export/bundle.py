"""The bundle: the one contract between the exporter, which writes it, and the service, which reads it.

A bundle is an immutable folder. ``manifest.json`` names every other file with its SHA-256 and size; a reader opens each
file once, without following links, hashes what it opened and parses those very bytes. Nothing here needs torch.

The same checkpoint gives the same bytes of every file, wherever and by whichever process it is exported, given the
versions of the packages in ``provenance``, the kind of processor and as many threads: others sum in another order,
and vectors, what is made of them and the errors in ``certificate.json`` then differ in their last digits. Excepted are
``measurements.json``, with its hash in the manifest, and an index that ``auto`` chose: both depend on measured times.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from export.arrays import read_npy, read_safetensors
from export.manifest import SCHEMA_VERSION, FileEntry, Manifest
from training.common.errors import BundleError, first_problem, shown
from training.common.folders import write_atomically

MANIFEST = "manifest.json"
MODEL_ONNX = "model.onnx"
USER_TOWER = "user_tower.onnx"
ITEM_TOWER = "item_tower.onnx"
TORCHSCRIPT = "model.ts"
PROGRAM = "model.pt2"
INDEX = "items.faiss"
ITEMS = "items.npy"
IDS = "ids.safetensors"
SEEN = "seen.safetensors"
POPULARITY = "popularity.npy"
CERTIFICATE = "certificate.json"
CERTIFICATE_TEXT = "certificate.md"
MEASUREMENTS = "measurements.json"
REQUIRED = (USER_TOWER, INDEX, ITEMS, IDS, SEEN, POPULARITY, CERTIFICATE)
EXCUSABLE = (MODEL_ONNX, TORCHSCRIPT, PROGRAM, ITEM_TOWER)
"""Files that a bundle may lack if its manifest says why."""

MAX_CERTIFICATE_BYTES = 2**21
_MAX_MANIFEST_BYTES = 2**18
_NO_VERSION = "0" * 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def content_version(manifest: Manifest) -> str:
    """Return the bundle version: 12 hex digits of a hash over everything else in the manifest, file hashes included.

    All but the entry of ``measurements.json``: seconds and bytes of memory differ each time that the same checkpoint is
    exported, and what the bundle answers does not. A reader checks that file's hash like any other.
    """
    document = manifest.model_dump(mode="json", exclude={"version": True, "files": {MEASUREMENTS}})
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
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        document = from_json(_manifest_bytes(directory, folder))
    except (BundleError, ValueError):
        return False
    finally:
        os.close(directory)
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


def _manifest_bytes(directory: int, where: Path) -> bytes:
    with os.fdopen(_open_without_links(directory, MANIFEST, where), "rb") as stream:
        raw = stream.read(_MAX_MANIFEST_BYTES + 1)
    if len(raw) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes; export the bundle again")
    return raw


def _read_in_one_way(raw: bytes) -> object:
    """Parse JSON but for repeated keys: of two equal ones every reader takes the one it likes."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("it says something twice")
        return found

    return json.loads(raw, object_pairs_hook=unique)


def _read_whole(stream: io.RawIOBase, size: int) -> memoryview:
    """Read so many bytes, or fewer where the file ends before.

    They are copied and not mapped: what is hashed is then what is parsed, also where somebody writes into the file
    meanwhile, and a file that is cut later cannot take the process down when a missing page is touched.
    """
    content = bytearray(size)
    rest = memoryview(content)
    while rest and (count := stream.readinto(rest)):
        rest = rest[count:]
    return memoryview(content).toreadonly()


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
        self.raw_manifest = raw = _manifest_bytes(self._directory, self.folder)
        try:
            manifest = Manifest.model_validate_json(raw, strict=True)
            if _read_in_one_way(raw) != manifest.model_dump(mode="json"):
                raise ValueError("it leaves something out")
        except ValidationError as error:
            raise BundleError(f"{self.folder}: {MANIFEST}: {first_problem(error)}; export the bundle again") from error
        except ValueError as error:
            raise BundleError(f"{self.folder}: {MANIFEST}: {error}; export the bundle again") from error
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
        unsafe = sorted(name for name in listed if not _NAME.fullmatch(name) or name == MANIFEST)
        if unsafe:
            raise BundleError(f"{self.folder}: the manifest lists an impossible file name {shown(unsafe[0])}")
        unexcused = sorted(set(self.manifest.absent) - set(EXCUSABLE))
        if unexcused:
            raise BundleError(f"{self.folder}: the manifest excuses {shown(unexcused[0])}, which no bundle may lack")
        present = set(os.listdir(self._directory)) - {MANIFEST}  # noqa: PTH208 (a descriptor, not a path)
        required = set(REQUIRED) | (set(EXCUSABLE) - set(self.manifest.absent))
        missing = sorted((listed | required) - present | (required - listed))
        if missing:
            raise BundleError(f"{self.folder}: {missing[0]} is missing; export the bundle again")
        extra = sorted(present - listed)
        if extra:
            raise BundleError(
                f"{self.folder}: {shown(extra[0])} is not listed in the manifest; export the bundle again"
            )

    def read(self, name: str) -> memoryview:
        """Return the verified content of one file.

        Args:
            name: A file named in the manifest.

        Returns:
            A read-only view of its bytes in memory. Whatever becomes of the file later, they stay as they were hashed.

        Raises:
            BundleError: Size or hash differ from the manifest, or the file is larger than this machine's memory.
        """
        with self._open(name) as stream:
            size = self.manifest.files[name].size
            try:
                if size > _physical_memory():
                    raise MemoryError
                content = _read_whole(stream, size)
            except MemoryError as error:
                raise BundleError(f"{self.folder}: {name} has {size} bytes, more than fit into memory") from error
        self._check_hash(name, hashlib.sha256(content).hexdigest())
        return content

    def _open(self, name: str) -> io.FileIO:
        """Open a file for reading and check its size."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.folder}: the bundle holds no {name}")
        stream = io.FileIO(_open_without_links(self._directory, name, self.folder))
        size = os.fstat(stream.fileno()).st_size
        if size != entry.size:
            stream.close()
            raise BundleError(
                f"{self.folder}: {name} has {size} bytes, the manifest says {entry.size}; export the bundle again"
            )
        return stream

    def _check_hash(self, name: str, sha256: str) -> None:
        if sha256 != self.manifest.files[name].sha256:
            raise BundleError(f"{self.folder}: {name} differs from its hash in the manifest; export the bundle again")

    def verify_all(self) -> None:
        """Hash every file of the bundle.

        Raises:
            BundleError: At the first file that differs.
        """
        for name in self.manifest.files:
            with self._open(name) as stream:
                self._check_hash(name, hashlib.file_digest(stream, "sha256").hexdigest())

    def array(self, name: str) -> NDArray[np.generic]:
        """Return a verified ``.npy`` file as an array that cannot be written to."""
        try:
            return read_npy(self.read(name))
        except ValueError as error:
            raise BundleError(f"{self.folder}: {name} is no plain array: {error}; export the bundle again") from error

    def tensors(self, name: str) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of a verified safetensors file; they cannot be written to."""
        try:
            return read_safetensors(self.read(name))
        except ValueError as error:
            raise BundleError(
                f"{self.folder}: {name} is no safetensors file: {error}; export the bundle again"
            ) from error
