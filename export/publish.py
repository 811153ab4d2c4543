"""Published bundles: versions side by side below one root, and a pointer to the current one. Needs no torch.

::

    ROOT/versions/<version>/   a bundle: whole and read-only from the moment that it is there, and never edited
    ROOT/current               the version that is served: 12 hex digits and a line end, replaced by a rename
    ROOT/history.jsonl         one line per move of the pointer, oldest first
    ROOT/.lock                 held by whoever publishes or rolls back

The history is written before the pointer moves. A process that dies in between leaves a last line that says where the
pointer was to go while the pointer is still where it was: that line does not count, and the next move replaces it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from export.bundle import MANIFEST, MEASUREMENTS, BundleReader, is_bundle
from export.manifest import Manifest
from export.publish_history import Move, moves_made, read_moves, trail_of, write_moves
from training.common.errors import BundleError, shown
from training.common.folders import atomic_folder, make_folder, remove_folder, write_atomically

VERSIONS = "versions"
CURRENT = "current"
HISTORY = "history.jsonl"
LOCK = ".lock"

_VERSION = re.compile("[0-9a-f]{12}")
_POINTER_BYTES = 13
_NOT_OURS = {"lost+found"}

Stage = Callable[[str], None]
"""Called with what takes a while, as it begins."""


@dataclass(frozen=True)
class Outcome:
    """What publishing or rolling back did.

    Attributes:
        version: The version that is current now.
        previous: The one that was current before; None at the first publication.
        copied: Whether the version is new below this root.
    """

    version: str
    previous: str | None
    copied: bool = False

    @property
    def moved(self) -> bool:
        """Whether the pointer moved."""
        return self.version != self.previous


@dataclass(frozen=True)
class Published:
    """One version below a root.

    Attributes:
        version: Its name.
        manifest: Its self-description; None where that cannot be read.
        problem: Why not.
        published: When it first became current; None if it never did.
        current: Whether it is served now.
    """

    version: str
    manifest: Manifest | None
    problem: str
    published: str | None
    current: bool


def current(root: Path) -> Path:
    """Return the folder of the current version. Cheap: a service may ask every second.

    Raises:
        BundleError: Nothing is published here, or the pointer is anything but the name of a version that is there.
    """
    version = _pointer(root)
    if version is None:
        _require_root(root)
        raise BundleError(
            f"{root}: no version is current; choose one with dvib-export rollback {root} --to VERSION, or publish one"
        )
    folder = root / VERSIONS / version
    if not (_is_folder(root / VERSIONS) and _is_folder(folder)):
        raise BundleError(
            f"{root}: the current version {version} is not in {VERSIONS}; choose another with dvib-export rollback --to"
        )
    return folder


def is_root(folder: Path) -> bool:
    """Tell whether bundles are, or were to be, published below a folder. A bundle itself is none."""
    return not os.path.lexists(folder / MANIFEST) and (
        os.path.lexists(folder / CURRENT) or os.path.lexists(folder / VERSIONS)
    )


def resolve(folder: Path) -> Path:
    """Return a bundle's folder: of a root the current version's, of a bundle the folder itself.

    Raises:
        BundleError: It is a root without a valid current version.
    """
    return current(folder) if is_root(folder) else folder


def history(root: Path) -> list[Move]:
    """Return the moves of the pointer, oldest first.

    Raises:
        BundleError: The history, or the pointer, is not what this program wrote.
    """
    return _moves(root, _pointer(root))


def check_outside(folder: Path, what: str) -> None:
    """Refuse to write into a bundle.

    Args:
        folder: What is to be written.
        what: How the user says where.

    Raises:
        BundleError: It lies in a bundle, at any depth.
    """
    for parent in Path(os.path.realpath(folder)).parents:
        if is_bundle(parent):
            raise BundleError(f"{folder} lies inside of {parent}, and bundles are never edited; choose another {what}")


def publish(bundle: Path, root: Path, on_stage: Stage = lambda _: None, *, only_version: str | None = None) -> Outcome:
    """Copy a bundle below a root, whole and checked against its hashes, and make it the current version.

    A version that is there already is not copied again: its files are checked, and the pointer moves.

    Args:
        bundle: The bundle's folder.
        root: Where versions are published; made, with its parents, if it is not there.
        on_stage: Told what happens.
        only_version: The version that the bundle must have, if not any: the one that the caller has looked at.

    Raises:
        BundleError: The bundle or the published version is altered, the bundle is not of this version, or ``root`` is a
            folder for something else or lies inside of a bundle.
        OSError: The file system refuses; the current version stays.
    """
    check_outside(root, "root")
    with BundleReader(bundle) as reader:
        version = reader.manifest.version
        if only_version not in {None, version}:
            raise BundleError(
                f"{bundle} was replaced while it was looked at: wanted version {only_version}, it is {version} now; "
                "nothing is published, try again"
            )
        _make_root(root)
        with _locked(root, on_stage):
            target = root / VERSIONS / version
            fresh = not os.path.lexists(target)
            if fresh:
                on_stage("copying and checking")
                with atomic_folder(target, read_only=True, replace=False) as copy:
                    for name in reader.manifest.files:
                        (copy / name).write_bytes(reader.read(name))
                    (copy / MANIFEST).write_bytes(reader.raw_manifest)
            else:
                on_stage("checking")
                reader.verify_all()
                _check_published(root, version, reader.manifest)
            return Outcome(version, _move(root, version, "publish"), copied=fresh)


def rollback(root: Path, to: str | None = None, on_stage: Stage = lambda _: None) -> Outcome:
    """Make an earlier version current again, after checking its files.

    Args:
        root: Where versions are published.
        to: The version; by default the one that was current before the present one. Each further step back goes
            further back, as far as the history reaches.
        on_stage: Told what happens.

    Raises:
        BundleError: There is no such version, or it was altered.
        OSError: The file system refuses; the current version stays.
    """
    if to is not None and not _VERSION.fullmatch(to):
        raise BundleError(f"{shown(to)} is no version: 12 hex digits; dvib-export list {root} shows them")
    _require_root(root)
    with _locked(root, on_stage):
        version = _step_back(root) if to is None else to
        on_stage("checking")
        _check_published(root, version)
        return Outcome(version, _move(root, version, "rollback"))


def published(root: Path) -> list[Published]:
    """Return the versions below a root: in the order in which they first became current, others last.

    Works with a damaged pointer too: somebody has to choose another one then.

    Raises:
        BundleError: This is no root, or its history cannot be read.
    """
    _require_root(root)
    pointer = _pointer_or_none(root)
    since: dict[str, str] = {}
    for move in _moves(root, pointer):
        since.setdefault(move.version, move.time)
    order = list(since)
    found = []
    for path in (root / VERSIONS).iterdir():
        if not _VERSION.fullmatch(path.name):
            continue
        manifest, problem = None, ""
        try:
            with BundleReader(path) as reader:
                manifest = reader.manifest
        except BundleError as error:
            problem = str(error)
        found.append(Published(path.name, manifest, problem, since.get(path.name), path.name == pointer))
    return sorted(found, key=lambda one: (order.index(one.version) if one.published else len(order), one.version))


def _is_folder(path: Path) -> bool:
    """Tell whether a folder is there, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _require_root(root: Path) -> None:
    if not _is_folder(root / VERSIONS):
        raise BundleError(f"{root}: nothing is published here; run dvib-export publish BUNDLE {root} first")


def _pointer(root: Path) -> str | None:
    """Return the version that the pointer names; None where there is no pointer."""
    path = root / CURRENT
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror}; wanted a file with a version") from error
    with os.fdopen(descriptor, "rb") as stream:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        raw = stream.read(_POINTER_BYTES + 1) if regular else b""
    version = raw[:-1].decode("ascii", "replace")
    if not _VERSION.fullmatch(version) or raw[-1:] != b"\n":
        raise BundleError(
            f"{path} holds {shown(raw)}, wanted a version, 12 hex digits; choose one with dvib-export rollback --to"
        )
    return version


def _pointer_or_none(root: Path) -> str | None:
    """Return what the pointer names, where it names anything: the next move puts a damaged one right."""
    try:
        return _pointer(root)
    except BundleError:
        return None


def _make_root(root: Path) -> None:
    if root.is_dir() and not _is_folder(root / VERSIONS):
        strange = sorted({path.name for path in root.iterdir() if not path.name.startswith(".")} - _NOT_OURS)
        # Another process may have made it a root between the two looks.
        if strange and not _is_folder(root / VERSIONS):
            raise BundleError(
                f"{root} holds {shown(strange[0])} and no published bundles; choose an empty or a new folder"
            )
    make_folder(root / VERSIONS)


@contextlib.contextmanager
def _locked(root: Path, on_stage: Stage) -> Iterator[None]:
    """Hold the root alone, and remove what killed processes left there."""
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_stage("waiting for another process that publishes here")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Under the lock no temporary file can be anybody's but a dead process's, whatever its process id says.
        for leftover in (*root.glob(".*.tmp-*"), *(root / VERSIONS).glob(".*.tmp-*")):
            if _is_folder(leftover):
                remove_folder(leftover)
            else:
                leftover.unlink(missing_ok=True)
        yield
    except OSError as error:
        # A write that fails for want of space does not say where.
        error.filename = error.filename or str(root)
        raise
    finally:
        os.close(descriptor)


def _comparable(manifest: Manifest) -> dict[str, object]:
    return manifest.model_dump(exclude={"files": {MEASUREMENTS}})


def _check_published(root: Path, version: str, wanted: Manifest | None = None) -> None:
    """Check that a published version is there and holds what its manifest says, and what is wanted."""
    folder = root / VERSIONS / version
    if not _is_folder(folder):
        raise BundleError(f"{root}: there is no version {version}; dvib-export list {root} shows which there are")
    try:
        with BundleReader(folder) as reader:
            found = reader.manifest
            reader.verify_all()
    except BundleError as error:
        reason = str(error).removesuffix("; export the bundle again")
        raise BundleError(f"{reason}: the published version was changed; move it away and publish it again") from error
    if found.version != version or (wanted is not None and _comparable(found) != _comparable(wanted)):
        raise BundleError(f"{folder} holds another bundle than its name says; move it away and publish again")


def _moves(root: Path, pointer: str | None) -> list[Move]:
    moves = read_moves(root / HISTORY)
    kept = bool(moves) and _is_folder(root / VERSIONS / moves[-1].version)
    return moves_made(moves, pointer, damaged=pointer is None and os.path.lexists(root / CURRENT), kept=kept)


def _move(root: Path, version: str, action: Literal["publish", "rollback"]) -> str | None:
    """Point to a version. Returns the one that was current before."""
    pointer = _pointer_or_none(root)
    if pointer == version:
        return pointer
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    moves = [*_moves(root, pointer), Move(time=time, action=action, version=version, previous=pointer)]
    write_moves(root / HISTORY, moves)
    write_atomically(root / CURRENT, f"{version}\n")
    return pointer


def _step_back(root: Path) -> str:
    """Return the version to go back to: the newest that was current earlier and has not been gone back from."""
    pointer = _pointer(root)
    for version in reversed(trail_of(history(root))):
        if version != pointer and _is_folder(root / VERSIONS / version):
            return version
    raise BundleError(f"{root}: no other version was current earlier; choose one with --to")
