"""Which version of each model is published. Cheap enough to ask every second."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from export.bundle import MANIFEST, BundleReader
from export.publish import current, is_root

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_Mark = tuple[int, int, int]


class Target(NamedTuple):
    """One model's bundle.

    Attributes:
        folder: Holds the bundle.
        version: That it must have.
    """

    folder: Path
    version: str


class Watch:
    """Looks at bundles and roots.

    Args:
        folders: Model name to a bundle, or to a root of published versions.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._known: dict[Path, tuple[_Mark, str]] = {}

    def look(self) -> dict[str, Target]:
        """Return what each model's pointer, or manifest, names now.

        Raises:
            BundleError: There is no bundle, no current version, or a manifest that cannot be read.
        """
        return {name: self._target(folder) for name, folder in self._folders.items()}

    def _target(self, folder: Path) -> Target:
        if is_root(folder):
            version = current(folder)
            return Target(version, version.name)
        return Target(folder, self._version(folder))

    def _version(self, folder: Path) -> str:
        """Return the version in a manifest, which is parsed again only where the file is another one."""
        mark = _mark(folder / MANIFEST)
        known = self._known.get(folder)
        if known is not None and known[0] == mark:
            return known[1]
        with BundleReader(folder) as reader:
            version = reader.manifest.version
        if mark is not None:
            self._known[folder] = mark, version
        return version


def _mark(path: Path) -> _Mark | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
