"""The packaged default data set: MovieLens 100K out of a wheel on the package index, checked by hash and cached."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from training.common.errors import DataError
from training.common.folders import atomic_folder

DEFAULT_DATASET = "ml-100k"
_REQUIREMENT = "recbole==1.2.1"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k/"
_PIP_SECONDS = 300
_ADVICE = "give a folder with data by --data-dir or DVIB_DATA, or try again with access to the package index"
_log = logging.getLogger("dvib.data")


@dataclass(frozen=True)
class PinnedFile:
    """One file of the wheel: its name, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str

    def accepts(self, content: bytes) -> bool:
        """Tell whether this is the pinned content."""
        return len(content) == self.size and hashlib.sha256(content).hexdigest() == self.sha256


FILES = (
    PinnedFile("ml-100k.inter", 1_979_230, "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
    PinnedFile("ml-100k.item", 66_632, "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
)


def cache_folder() -> Path:
    """Return where fetched data are kept: ``$DVIB_CACHE``, else ``$XDG_CACHE_HOME/dvib``, else ``~/.cache/dvib``."""
    chosen = os.environ.get("DVIB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dvib"


def fetch_default(files: tuple[PinnedFile, ...] = FILES) -> Path:
    """Return the folder with the default data set, fetching it through pip unless the cache holds it already.

    Nothing of the wheel is run: two files are read out of the zip and must have the pinned size and hash.

    Args:
        files: What to take, with its hashes.

    Returns:
        A folder with ``ml-100k.inter`` and ``ml-100k.item`` (RecBole's atomic files).

    Raises:
        DataError: pip failed, the files are not the pinned ones, or the cache cannot be written.
    """
    folder = cache_folder() / DEFAULT_DATASET
    if _holds(folder, files):
        return folder
    if folder.exists():
        _log.warning("%s is not the pinned data set: fetching it again", folder)
    _log.info("fetching %s from the package index (2 MB) into %s", DEFAULT_DATASET, folder)
    with tempfile.TemporaryDirectory(prefix="dvib-fetch-") as download:
        contents = _read_wheel(_download(Path(download)), files)
    try:
        with atomic_folder(folder) as fresh:
            for file in files:
                (fresh / file.name).write_bytes(contents[file.name])
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {folder} ({error.strerror or error}); set DVIB_CACHE to a writable folder"
        ) from error
    return folder


def _holds(folder: Path, files: tuple[PinnedFile, ...]) -> bool:
    try:
        return all(file.accepts((folder / file.name).read_bytes()) for file in files)
    except OSError:
        return False


def _download(target: Path) -> Path:
    """Let pip put the wheel into an empty folder. Wheels only: building a source archive would run its code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(target), _REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(
            f"could not fetch {DEFAULT_DATASET}: pip download {_REQUIREMENT}: {error}; {_ADVICE}"
        ) from error
    wheels = sorted(target.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel came"]
        raise DataError(
            f"could not fetch {DEFAULT_DATASET}: pip download {_REQUIREMENT} failed ({lines[-1].strip()}); {_ADVICE}"
        )
    return wheels[0]


def _read_wheel(wheel: Path, files: tuple[PinnedFile, ...]) -> dict[str, bytes]:
    """Return the pinned files' contents; at most their size is read, whatever the zip claims."""
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in files:
                with archive.open(_WHEEL_FOLDER + file.name) as stream:
                    contents[file.name] = stream.read(file.size + 1)
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"could not fetch {DEFAULT_DATASET}: {wheel.name} is not the wheel expected ({error})"
        ) from error
    for file in files:
        if not file.accepts(contents[file.name]):
            raise DataError(
                f"could not fetch {DEFAULT_DATASET}: {file.name} in {wheel.name} does not have the pinned SHA-256 "
                f"{file.sha256}; the package index served something else: {_ADVICE}"
            )
    return contents
