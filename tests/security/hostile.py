"""Tools for attacks on bundles: forged files, honest hashes around them, and a process to load them in."""

from __future__ import annotations

import hashlib
import json
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export import bundle
from export.serving import load_for_serving
from service.engine import Engine
from tests.helpers_bundle import Content, make_content, write_bundle
from tests.helpers_export import environment
from training.common.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
SERVED = (
    bundle.USER_TOWER,
    bundle.INDEX,
    bundle.ITEMS,
    bundle.IDS,
    bundle.SEEN,
    bundle.POPULARITY,
    bundle.CERTIFICATE,
)
CONTENT = make_content()
_PATIENCE_S = 60
Document = dict[str, Any]


def make_bundle(folder: Path, content: Content = CONTENT) -> Path:
    """Write a sound bundle."""
    write_bundle(folder, content)
    return folder


def manifest_of(folder: Path) -> Document:
    document: Document = json.loads((folder / bundle.MANIFEST).read_text("utf-8"))
    return document


def version_of(document: Document) -> str:
    """Hash a manifest without the code under test."""
    rest = {name: value for name, value in document.items() if name != "version"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def seal(folder: Path, document: Document) -> None:
    """Write a manifest whose version fits, as an attacker would who knows the format."""
    (folder / bundle.MANIFEST).write_text(json.dumps({**document, "version": version_of(document)}), "utf-8")


def reseal(folder: Path, document: Document | None = None) -> None:
    """Make hashes, sizes and version fit whatever the folder holds now."""
    fresh = document or manifest_of(folder)
    fresh["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != bundle.MANIFEST
    }
    seal(folder, fresh)


def refusal(folder: Path, load: Callable[[Path], object] = Engine.load) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        load(folder)
    line = str(caught.value)
    assert_named(line, folder)
    return line


def assert_named(line: str, folder: Path) -> None:
    """A refusal names the folder, is one line, and cannot move a terminal's cursor."""
    assert str(folder) in line
    assert line.isprintable(), line
    assert len(line) < 1000


def load_and_hash(folder: Path) -> None:
    load_for_serving(folder)
    with bundle.BundleReader(folder) as reader:
        reader.verify_all()


class Child:
    """Another process that loads bundles, one after another, within 4 GiB of memory."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.security.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._cwd,
            env=environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def load(self, folder: Path, *, k: int = 5, limit: int = 20) -> Document:
        """Return what came of one bundle: ``refused``, or ``answers`` to its first users and to an unknown one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), "k": k, "limit": limit}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE_S)
        if not ready:
            self._process.kill()
        line = self._process.stdout.readline()
        if not line:
            _, complaint = self._process.communicate()
            pytest.fail(f"{folder}: the process ended with {self._process.returncode}: {complaint[-2000:]}")
        reply: Document = json.loads(line)
        return reply

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def child(cwd: Path) -> Iterator[Child]:
    process = Child(cwd)
    try:
        yield process
    finally:
        process.close()


def copy(folder: Path, target: Path) -> Path:
    """Copy a bundle anew, whatever lay there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True)
    return target
