"""Where counts are kept: a full disk, no place at all, and what services that were killed have left."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from service.observe.metrics import Metrics, ReloadMetrics
from service.observe.page import page
from service.process.metrics_folder import metrics_folder
from tests.helpers_bundle import make_content, write_bundle
from tests.service.scrape import samples
from training.common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from export.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_bundle(tmp_path_factory.mktemp("metrics") / "toy", make_content())


def fill_disk(monkeypatch: pytest.MonkeyPatch, above: int = 0) -> None:
    """Refuse to enlarge a file above a size."""
    allocate = os.posix_fallocate

    def refuse(file: int, offset: int, length: int) -> None:
        if length > above:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(file, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)


def replies(metrics: Metrics | ReloadMetrics) -> float:
    wanted = {"route": "/recommend", "model": "toy", "status": "200"}
    return samples(page(metrics.cells)[0]).get(("dvib_serve_replies_total", frozenset(wanted.items())), 0.0)


def test_a_worker_starts_on_a_full_disk_and_shows_what_others_count(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it keep a slot: the gauges of the process that has had it would come back to life."""
    supervisor, living, dead = (
        ReloadMetrics(tmp_path),
        Metrics({"toy": manifest}, tmp_path),
        Metrics({"toy": manifest}, tmp_path),
    )
    living.reply("/recommend", "toy", 200, 0.1)
    dead.reply("/recommend", "toy", 200, 0.1)
    dead.close()
    before = page(supervisor.cells)[0]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (they come and go)
    fill_disk(monkeypatch)
    late = Metrics({"toy": manifest}, tmp_path)
    late.reply("/recommend", "toy", 200, 0.1)
    assert page(late.cells)[0] == page(living.cells)[0] == before
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    late.close()
    living.close()
    supervisor.close()


def test_no_request_fails_for_a_count_that_has_no_room(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics({"toy": manifest}, tmp_path)
    fill_disk(monkeypatch, above=2**16)
    for number in range(1000):  # many more numbers than there is room for
        metrics.reply(f"/a/long/route/{number}", "toy", 200, 0.1)
        metrics.reply("/recommend", "toy", 200, 0.1)
    assert replies(metrics) == 1000
    metrics.close()


def test_the_supervisor_says_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left on device") as caught:
        ReloadMetrics(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_a_machine_without_temporary_folders_is_told_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="DVIB_SERVE_METRICS_DIR"), metrics_folder(None):
        pass
    with metrics_folder(tmp_path / "own") as given:
        assert given == tmp_path / "own"
    assert given.is_dir()


def test_what_a_killed_service_has_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("left", "young", "living", "linked")
    left, young, living, linked = (tmp_path / f"dvib-serve-{name}" for name in names)
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other-dvib-serve-x"
    for path in (left, young, living, elsewhere, other):
        path.mkdir()
        (path / "0.cells").touch()
        if path != young:
            os.utime(path, (0, 0))
    linked.symlink_to(elsewhere)
    os.utime(linked, (0, 0), follow_symlinks=False)
    holder = os.open(living, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with metrics_folder(None) as mine:
            assert set(tmp_path.iterdir()) == {young, living, linked, elsewhere, other, mine}
            assert all((path / "0.cells").exists() for path in (young, living, elsewhere, other))
            # Who cleans up, as systemd does, takes a lock first.
            cleaner = os.open(mine, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(cleaner)
        assert not mine.exists()
    finally:
        os.close(holder)
