"""Folders and files that exist whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing; on return they are on the disk."""
    folder = folder.absolute()
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_path(folder.parent)


def _exchange(first: Path, second: Path) -> None:
    """Swap two paths in one step (renameat2 with RENAME_EXCHANGE; Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "renameat2 is not available")
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))


def _swap(fresh: Path, target: Path) -> None:
    """Put ``fresh`` in the place of the existing ``target``; afterwards ``fresh`` holds what is to be deleted."""
    try:
        _exchange(fresh, target)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
            raise
        # Without an atomic exchange the old folder waits beside the target should we die between the two renames.
        retired = _retired(target)
        target.rename(retired)
        fresh.rename(target)
        with contextlib.suppress(FileNotFoundError):  # another process that writes this target has removed it
            retired.rename(fresh)


def _retired(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def settle_retired(target: Path) -> None:
    """Undo or complete what a process left that died between the renames of ``_swap``."""
    retired = _retired(target)
    if retired.exists() and target.exists():
        remove_folder(retired)
    elif retired.exists():
        retired.rename(target)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(
            errno.EEXIST, "it is there already and is not replaced; choose another place", str(target)
        )


def remove_folder(folder: Path) -> None:
    """Remove a folder as far as that is possible, a read-only one too."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove temporary folders and files whose process is gone."""
    for leftover in parent.glob(glob.escape(prefix) + "*"):
        owner = leftover.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and Path(f"/proc/{owner}").exists():
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            remove_folder(leftover)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path, *, read_only: bool = False, replace: bool = True) -> Iterator[Path]:
    """Fill a temporary folder that takes the place of ``target`` when the block ends without an error.

    Whoever looks at ``target`` sees the previous folder or the new one, never a mixture, also after a kill. A folder
    left by a killed process is removed the next time the same target is written.

    Args:
        target: The folder to create or replace. Its parent is created.
        read_only: Nobody may write into the folder or its files afterwards.
        replace: Whether an existing target is replaced.

    Yields:
        The temporary folder, beside ``target``.

    Raises:
        FileExistsError: The target is there, at the start or at the end, and is not to be replaced.
    """
    target = target.absolute()
    make_folder(target.parent)
    prefix = f".{target.name}.tmp-"
    _remove_leftovers(target.parent, prefix)
    settle_retired(target)
    if not replace:
        _check_free(target)
    fresh = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    folder_mode, file_mode = (0o555, 0o444) if read_only else (0o755, 0o644)
    try:
        yield fresh
        fresh.chmod(folder_mode)
        for path in fresh.rglob("*"):
            # Whoever serves a bundle is seldom the user who made it, and some writers create private files.
            path.chmod(folder_mode if path.is_dir() else file_mode)
            fsync_path(path)
        fsync_path(fresh)
        if not replace:
            _check_free(target)
        if target.exists():
            _swap(fresh, target)
        else:
            fresh.rename(target)
        fsync_path(target.parent)
    finally:
        remove_folder(fresh)


@contextlib.contextmanager
def atomic_file(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Write a temporary file that takes the place of ``target`` when the block ends without an error.

    Whoever looks at ``target`` sees what was there before or the whole new file, also after a kill. A file left by a
    killed process is removed the next time the same target is written.

    Args:
        target: The file to create or replace. Its folder is created.
        replace: Whether an existing target is replaced.

    Yields:
        The temporary file, empty, beside ``target``.

    Raises:
        FileExistsError: The target is there, at the start or at the end, and is not to be replaced.
    """
    target = target.absolute()
    make_folder(target.parent)
    prefix = f".{target.name}.tmp-"
    _remove_leftovers(target.parent, prefix)
    if not replace:
        _check_free(target)
    descriptor, name = tempfile.mkstemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent)
    os.close(descriptor)
    fresh = Path(name)
    try:
        yield fresh
        fresh.chmod(0o644)
        fsync_path(fresh)
        if not replace:
            _check_free(target)
        fresh.replace(target)
        fsync_path(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary file and a rename; on return it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
        fsync_path(path.parent)
    finally:
        fresh.unlink(missing_ok=True)
