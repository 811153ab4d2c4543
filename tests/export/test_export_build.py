"""``dvib-export build``: what it refuses, and that an old bundle outlives every failure."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import build, bundle
from tests.helpers_export import assert_same_but_for_torchscript, digests, dvib_export, edit_checkpoint, environment
from training.checkpoint import BEST, DVIB, GRAPH, MODEL

Copy = Callable[[Path], Path]


def test_an_existing_bundle_is_not_replaced_unasked(baseline_run: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    existing = copy_of(baseline_bundle)
    before = digests(existing)
    outcome = dvib_export("build", baseline_run, "--out", existing)
    assert outcome.code == 2
    assert str(existing) in outcome.complaint
    assert "--force" in outcome.complaint
    assert digests(existing) == before


def refused(tmp_path: Path, run: Path, *words: str, baseline: Path | None = None) -> None:
    """The build ends with exit code 2, one line on stderr that says all the words, and nothing in the folder."""
    out = tmp_path / "out" / "bundle"
    options = [] if baseline is None else ["--baseline", baseline]
    outcome = dvib_export("build", run, "--out", out, *options)
    assert (outcome.code, outcome.out) == (2, "")
    for word in words:
        assert word in outcome.complaint
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_no_run(tmp_path: Path, adaptive_run: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        refused(tmp_path, path, str(path), "dvib-train fit")
        refused(tmp_path, adaptive_run, str(path), baseline=path)


def test_a_baseline_that_is_none(tmp_path: Path, adaptive_run: Path, constant_run: Path) -> None:
    refused(tmp_path, adaptive_run, str(constant_run), "DVIB constant", baseline=constant_run)
    refused(tmp_path, adaptive_run, str(adaptive_run), "DVIB adaptive", baseline=adaptive_run)


def test_a_baseline_of_other_data(tmp_path: Path, adaptive_run: Path, elsewhere_run: Path) -> None:
    refused(tmp_path, adaptive_run, str(elsewhere_run), "other data", baseline=elsewhere_run)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_a_checkpoint_of_another_schema_version(
    version: object, tmp_path: Path, adaptive_run: Path, copy_of: Copy
) -> None:
    old = copy_of(adaptive_run)
    edit_checkpoint(old, lambda document: document.update(schema_version=version))
    refused(tmp_path, old, f"schema version {version}", "train again")
    refused(tmp_path, adaptive_run, f"schema version {version}", baseline=old)


@pytest.mark.parametrize("name", [MODEL, DVIB, GRAPH])
def test_a_damaged_checkpoint(name: str, tmp_path: Path, adaptive_run: Path, copy_of: Copy) -> None:
    damaged = copy_of(adaptive_run)
    path = damaged / BEST / name
    content = path.read_bytes()
    path.unlink()
    refused(tmp_path, damaged, str(damaged / BEST))
    path.write_bytes(content[: len(content) // 2])
    refused(tmp_path, damaged, str(damaged / BEST))


def test_tensors_that_do_not_fit(tmp_path: Path, adaptive_run: Path, wide_run: Path, copy_of: Copy) -> None:
    mixed = copy_of(adaptive_run)
    (mixed / BEST / MODEL).write_bytes((wide_run / BEST / MODEL).read_bytes())
    refused(tmp_path, mixed, str(mixed / BEST), "do not fit")
    missing = mixed / BEST / DVIB
    missing.write_bytes((wide_run / BEST / DVIB).read_bytes())
    refused(tmp_path, mixed, "do not fit")


def test_data_changed_behind_the_checkpoint(
    tmp_path: Path, adaptive_run: Path, elsewhere_run: Path, copy_of: Copy
) -> None:
    mixed = copy_of(adaptive_run)
    path = mixed / BEST / GRAPH
    path.unlink()  # a hard link: the run's other files share it
    path.write_bytes((elsewhere_run / BEST / GRAPH).read_bytes())
    refused(tmp_path, mixed, "data files differ")


class UnexpectedError(Exception):
    """Something that nobody expects."""


def test_an_error_in_the_middle_leaves_the_old_bundle(
    baseline_run: Path, baseline_bundle: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    existing = copy_of(baseline_bundle)
    before = digests(existing)
    written: list[str] = []

    def broken(*arguments: object) -> None:
        folder = arguments[3]
        assert isinstance(folder, Path)
        written.extend(path.name for path in folder.iterdir())
        raise UnexpectedError

    monkeypatch.setattr(build, "certify", broken)
    monkeypatch.setattr(build, "export_onnx", lambda *_: b"quick")
    with pytest.raises(UnexpectedError):
        dvib_export("build", baseline_run, "--out", existing, "--force")
    assert set(written) >= {bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.TORCHSCRIPT}
    assert digests(existing) == before
    assert list(tmp_path.iterdir()) == [existing]


def test_a_kill_in_the_middle_leaves_the_old_bundle_and_the_next_build_tidies_up(
    baseline_run: Path, baseline_bundle: Path, copy_of: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    existing = copy_of(baseline_bundle)
    before = digests(existing)
    command = [sys.executable, "-m", "export", "build", str(baseline_run), "--out", str(existing), "--force"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment()) as process:
        deadline = time.monotonic() + 60
        while not (half := list(tmp_path.glob(f".*/{bundle.MODEL_ONNX}"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -9
    assert half[0].parent.exists()
    assert not (half[0].parent / bundle.MANIFEST).exists()
    assert digests(existing) == before
    assert dvib_export("verify", existing).code == 0

    monkeypatch.setattr(build, "export_onnx", lambda *_: b"quick")
    monkeypatch.setattr(build, "certify", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dvib_export("build", baseline_run, "--out", existing, "--force")
    assert list(tmp_path.iterdir()) == [existing]
    assert digests(existing) == before


@pytest.mark.usefixtures("remembered")
def test_force_replaces_the_whole_bundle(
    baseline_run: Path, baseline_bundle: Path, adaptive_bundle: Path, copy_of: Copy, tmp_path: Path
) -> None:
    """Every file is the new one's, and what does not belong goes."""
    existing = copy_of(adaptive_bundle)
    np.save(existing / "stray.npy", np.zeros(1))
    outcome = dvib_export("build", baseline_run, "--out", existing, "--force")
    assert (outcome.code, outcome.err) == (0, "")
    assert_same_but_for_torchscript(existing, baseline_bundle)
    assert list(tmp_path.iterdir()) == [existing]
    for proof in ("transplant", "blanked", "architecture", "parity"):
        assert f"proof {proof}: " in outcome.out
    assert "removed: 0 training-only tensors with 0 parameters" in outcome.out


def test_force_replaces_bundles_only(tmp_path: Path, baseline_run: Path, copy_of: Copy) -> None:
    """Not the run that is exported, not a folder of somebody's, not a file."""
    run, folder, file = copy_of(baseline_run), tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "precious").write_text("text")
    file.write_text("text")
    for out in (run, run / BEST, folder, file):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        outcome = dvib_export("build", run, "--out", out, "--force")
        assert (outcome.code, outcome.out) == (2, "")
        assert f"{out} is no bundle and is not replaced" in outcome.complaint
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert (folder / "precious").read_text() == file.read_text() == "text"
