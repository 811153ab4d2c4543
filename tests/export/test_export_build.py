"""``dvib-export build``: what it refuses, and that an old bundle outlives every failure."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from export import artefacts, build, bundle, strip
from export.artefacts import full_graph_onnx
from export.commands.build import stages
from tests.helpers_export import assert_same_bytes, digests, dvib_export, edit_checkpoint, environment
from tests.helpers_training import make_config
from training.checkpoint import BEST, DVIB, GRAPH, MODEL, load_checkpoint
from training.data.dataset import Dataset
from training.trainer import Trainer

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


def test_a_baseline_that_was_not_trained_by_itself(
    tmp_path: Path, baseline_run: Path, adaptive_run: Path, copy_of: Copy
) -> None:
    """The run itself, a copy of it, and a plain run that was given a DVIB run's tensors."""
    refused(tmp_path, baseline_run, "same tensors", str(baseline_run), baseline=baseline_run)
    copied = copy_of(baseline_run)
    refused(tmp_path, baseline_run, "same tensors", str(copied), baseline=copied)
    (copied / BEST / MODEL).unlink()  # a hard link: the run's other files may share it
    (copied / BEST / MODEL).write_bytes((adaptive_run / BEST / MODEL).read_bytes())
    refused(tmp_path, adaptive_run, "same tensors", str(copied), baseline=copied)


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
    monkeypatch.setattr(artefacts, "onnx_of", lambda *_: b"quick")
    monkeypatch.setattr(artefacts, "export_onnx", lambda *_: b"quick")
    with pytest.raises(UnexpectedError):
        dvib_export("build", baseline_run, "--out", existing, "--force")
    assert set(written) >= {bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.TORCHSCRIPT, bundle.PROGRAM}
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

    monkeypatch.setattr(artefacts, "onnx_of", lambda *_: b"quick")
    monkeypatch.setattr(artefacts, "export_onnx", lambda *_: b"quick")
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
    assert_same_bytes(existing, baseline_bundle)
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


def test_what_was_written_and_what_is_absent_is_said(dataset: Dataset, tmp_path: Path) -> None:
    Trainer(make_config("none", "training.epochs=1", model="layergcn"), dataset, tmp_path / "run").fit()
    outcome = dvib_export("build", tmp_path / "run", "--out", tmp_path / "b")
    assert (outcome.code, outcome.err) == (0, "")
    files = {path.name for path in (tmp_path / "b").iterdir()} - {bundle.MANIFEST}
    assert f"{len(files)} files, " in outcome.out
    for name in files:
        assert f"{name} " in outcome.out
    assert f"no {bundle.ITEM_TOWER}: " in outcome.out
    with bundle.BundleReader(tmp_path / "b") as reader:
        assert reader.manifest.absent.keys() == {bundle.ITEM_TOWER}
        versions = reader.manifest.provenance
        assert reader.manifest.opset >= 18
    for package in ("torch", "onnx", "onnxruntime", "onnxscript", "faiss", "numpy"):
        assert versions[f"version.{package}"]


def test_a_checkpoint_of_a_gpu_exports_on_a_cpu(baseline_run: Path, baseline_bundle: Path, copy_of: Copy) -> None:
    """What training on CUDA leaves behind is another version of torch: safetensors know no devices."""
    run = copy_of(baseline_run)
    edit_checkpoint(run, lambda document: document["versions"].update(torch="2.9.0+cu128"))
    checkpoint = load_checkpoint(run)
    assert checkpoint.info.versions["torch"] == "2.9.0+cu128"
    assert {tensor.device.type for tensor in (*checkpoint.model.values(), *checkpoint.dvib.values())} == {"cpu"}
    model = strip.strip(strip.trained_objective(checkpoint))
    assert full_graph_onnx(model) == (baseline_bundle / bundle.MODEL_ONNX).read_bytes()


def test_a_terminal_sees_stages_and_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr("rich.console.Console", lambda **_: terminal)
    with stages() as enter:
        enter("stripping")
        enter("proving")
    shown = [line for line in screen.getvalue().splitlines() if " s  " in line]
    assert [line.split()[-1] for line in shown] == ["stripping", "proving"]


def test_a_pipe_sees_no_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as enter:
        enter("stripping")
    assert capsys.readouterr() == ("", "")
