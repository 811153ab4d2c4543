from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.hostile import Child, child, copy, make_bundle


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound toy bundle; never changed by a test."""
    return make_bundle(tmp_path_factory.mktemp("sound") / "toy")


@pytest.fixture
def spoiled(sound: Path, tmp_path: Path) -> Path:
    """A copy for a test to spoil."""
    return copy(sound, tmp_path / "b")


@pytest.fixture
def fresh(sound: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies for a test to spoil, one at a time."""
    return lambda: copy(sound, tmp_path / "b")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where the other process works: nothing in it may be touched."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def loader(elsewhere: Path) -> Iterator[Child]:
    """A process that loads bundles."""
    with child(elsewhere) as process:
        yield process
