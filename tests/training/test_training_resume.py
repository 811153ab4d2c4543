from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers_runs import assert_same_run
from tests.helpers_training import Interrupted, StopAt, make_config, planted_blocks, write_mmrec
from training import trainer as module
from training.checkpoint import MODEL, load_checkpoint
from training.common.choices import Variant
from training.common.errors import CheckpointError
from training.config import RunConfig, build_config
from training.data.load import load_dataset
from training.evaluation import evaluate_model
from training.reporting import Reporter
from training.resume import LAST, load_resume_state
from training.trainer import Trainer

DATASET = planted_blocks()
VARIANTS: tuple[Variant, ...] = ("none", "adaptive")


def config_of(variant: Variant, *overrides: str) -> RunConfig:
    return make_config(variant, "training.epochs=6", "training.learning_rate=0.02", "dvib.gamma_r=0.1", *overrides)


def fit(config: RunConfig, out: Path, *, resume: bool = False, reporter: Reporter | None = None) -> None:
    Trainer(config, DATASET, out, reporter=reporter, ks=(5,)).fit(resume=resume)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    for variant in VARIANTS:
        fit(config_of(variant), folder / variant)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_run_stopped_and_resumed_equals_one_that_went_through(
    tmp_path: Path, unbroken: Path, variant: Variant, epochs: int
) -> None:
    fit(config_of(variant, f"training.epochs={epochs}"), tmp_path)
    state = load_resume_state(tmp_path)
    assert state is not None
    assert state.document["epoch"] == epochs
    fit(config_of(variant), tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken / variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("every_epoch", [True, False])
@pytest.mark.parametrize("stops", [[1], [7, 1, 9]])
def test_interrupted_anywhere_inside_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    unbroken: Path,
    variant: Variant,
    every_epoch: bool,
    stops: list[int],
) -> None:
    # With states saved after each epoch the run goes on from the last one; else from the state of the start.
    monkeypatch.setattr(module, "SAVE_SECONDS", -1.0 if every_epoch else 1e9)
    for steps in stops:
        with pytest.raises(Interrupted):
            fit(config_of(variant), tmp_path, resume=True, reporter=StopAt(steps=steps))
    state = load_resume_state(tmp_path)
    assert state is not None
    if not every_epoch:
        assert state.document["epoch"] == 0
    elif len(stops) == 3:
        assert state.document["epoch"] > 1
    fit(config_of(variant), tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken / variant)


@pytest.mark.parametrize("epochs", [2, 6])
def test_interrupted_after_a_checkpoint_that_is_newer_than_the_state(
    tmp_path: Path, unbroken: Path, epochs: int
) -> None:
    with pytest.raises(Interrupted):
        fit(config_of("adaptive"), tmp_path, reporter=StopAt(epochs=epochs))
    assert load_checkpoint(tmp_path).info.epoch >= 1
    fit(config_of("adaptive"), tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken / "adaptive")


@pytest.mark.parametrize("where", ["_save_best", "_save_state", "_finish", "_append_log"])
def test_interrupted_before_each_thing_that_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unbroken: Path, where: str
) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", -1.0)
    calls = 2 if where != "_finish" else 1
    original = getattr(Trainer, where)

    def fail(self: Trainer, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise Interrupted
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, where, fail)
        with pytest.raises(Interrupted):
            fit(config_of("adaptive"), tmp_path)
    fit(config_of("adaptive"), tmp_path, resume=True)
    assert_same_run(tmp_path, unbroken / "adaptive")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_first_state_can_be_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unbroken: Path, resume: bool
) -> None:
    def kill(self: Trainer) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_state", kill)
        with pytest.raises(Interrupted):
            fit(config_of("none"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "log.jsonl"}
    for name in (".data.tmp-1-x", ".last.tmp-1-x"):  # what a kill in the middle of writing leaves
        (tmp_path / name).mkdir()
    fit(config_of("none"), tmp_path, resume=resume)
    assert_same_run(tmp_path, unbroken / "none")


@pytest.mark.parametrize("stray", ["data/precious", "log.jsonl", "notes.txt", ".data.keep/x", "best/x", "last/x"])
def test_a_folder_that_only_looks_like_a_run_is_not_touched(tmp_path: Path, stray: str) -> None:
    path = tmp_path / stray
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="holds something that is no run"):
        fit(config_of("none"), tmp_path)
    assert [inner for inner in tmp_path.rglob("*") if inner.is_file()] == [path]


def test_without_its_test_metrics_a_run_is_unfinished_until_it_is_resumed_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unbroken: Path
) -> None:
    judged: list[str] = []

    def watched(model: Any, data: Any, *more: Any) -> dict[str, float]:
        judged.append("test" if data is trainer.test else "valid")
        return evaluate_model(model, data, *more)

    monkeypatch.setattr(module, "evaluate_model", watched)
    trainer = Trainer(config_of("adaptive"), DATASET, tmp_path, ks=(5,))
    info = trainer.fit(test=False)
    assert (judged, info.finished, set(info.metrics)) == (["valid"] * 6, False, {"valid"})
    for resume in range(3):
        judged.clear()
        trainer = Trainer(config_of("adaptive"), DATASET, tmp_path, ks=(5,))
        trainer.fit(resume=True, test=resume > 0)
        assert judged == (["test"] if resume == 1 else [])
    assert_same_run(tmp_path, unbroken / "adaptive")


def test_early_stopping_is_resumed_with_its_count(tmp_path: Path) -> None:
    overrides = ("training.patience=3", "training.epochs=60", "training.learning_rate=0.05")
    fit(config_of("none", *overrides), tmp_path / "through")
    history = load_checkpoint(tmp_path / "through").info.history
    assert 4 < len(history) < 60
    # Stopped in the middle of waiting: what is left of the patience must be what is left.
    fit(config_of("none", *overrides, f"training.epochs={len(history) - 1}"), tmp_path / "parts")
    fit(config_of("none", *overrides), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "through")


def test_a_run_that_ends_before_its_best_checkpoint_is_not_finished_with_it(tmp_path: Path) -> None:
    def config(*overrides: str) -> RunConfig:
        return config_of("none", "training.patience=60", *overrides)

    # Saved after epoch 2, killed in epoch 6 or later, with the checkpoint of a better one.
    fit(config("training.epochs=2"), tmp_path / "run")
    state = shutil.copytree(tmp_path / "run" / LAST, tmp_path / "state")
    with pytest.raises(Interrupted):
        fit(config("training.epochs=60"), tmp_path / "run", resume=True, reporter=StopAt(epochs=20))
    shutil.rmtree(tmp_path / "run" / LAST)
    shutil.copytree(state, tmp_path / "run" / LAST)
    best = load_checkpoint(tmp_path / "run").info
    assert best.epoch > 2
    for shorter in ("training.epochs=1", "training.epochs=2"):
        with pytest.raises(CheckpointError, match=f"is of epoch {best.epoch}.*epochs={best.epoch} or more "):
            fit(config(shorter), tmp_path / "run", resume=True)
        assert load_checkpoint(tmp_path / "run").info == best
    longer = config(f"training.epochs={best.epoch}")
    fit(longer, tmp_path / "run", resume=True)
    fit(longer, tmp_path / "through")
    assert_same_run(tmp_path / "run", tmp_path / "through")


@pytest.mark.parametrize("name", ["best", LAST])
def test_what_a_kill_between_two_renames_has_put_aside_is_put_back(tmp_path: Path, unbroken: Path, name: str) -> None:
    # Only file systems that cannot exchange two folders in one step know such a moment.
    fit(config_of("none", "training.epochs=3"), tmp_path)
    (tmp_path / name).rename(tmp_path / f".{name}.old")
    fit(config_of("none"), tmp_path, resume=True, reporter=StopAt(epochs=4))  # three are left
    assert_same_run(tmp_path, unbroken / "none")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    fit(config_of("none", "training.epochs=2"), tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "best").iterdir()}
    fit(config_of("none", "training.epochs=2"), tmp_path, resume=True, reporter=StopAt(steps=1))  # not one step more
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "best").iterdir()}
    assert before == after


def test_resuming_without_a_run_starts_one(tmp_path: Path, unbroken: Path) -> None:
    fit(config_of("none"), tmp_path / "new", resume=True)
    assert_same_run(tmp_path / "new", unbroken / "none")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("training.seed=1",), r"another 'training' \(seed: 999 → 1\)"),
        (("training.learning_rate=0.5",), r"another 'training' \(learning_rate: 0\.02 → 0\.5\)"),
        (("dvib.gamma_d=0.7", "dvib.mix=convex"), r"another 'dvib' \(mix: add → convex, gamma_d: 0\.1 → 0\.7\)"),
        (("model.regularisation=2.0",), r"another 'model' \(regularisation: 0\.01 → 2\.0\)"),
        (("data.k_core=5",), r"another 'data' \(k_core: 0 → 5\)"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    fit(config_of("none", "training.epochs=1"), tmp_path)
    before = (tmp_path / "best" / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match=rf"the run was started with {message}; go on with the same settings"):
        fit(config_of("none", *overrides), tmp_path, resume=True)
    assert (tmp_path / "best" / MODEL).read_bytes() == before


def test_another_variant_and_other_data_are_refused(tmp_path: Path) -> None:
    fit(config_of("none", "training.epochs=1"), tmp_path)
    with pytest.raises(CheckpointError, match=r"another 'dvib' \(variant: none → adaptive\)"):
        fit(config_of("adaptive"), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="the data have changed since the run was started"):
        Trainer(config_of("none"), planted_blocks(seed=1), tmp_path).fit(resume=True)


@pytest.mark.parametrize("name", ["state.json", "parameters.safetensors", "optimiser.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_state_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    fit(config_of("none", "training.epochs=1"), tmp_path)
    path = tmp_path / LAST / name
    raw = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        fit(config_of("none"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schema_version": 2}, "run state schema version 2, this program reads 1"),
        ({"schema_version": 1}, "the run's state does not fit this program"),
        ({"schema_version": 1, "config": {"model_name": "vbpr"}}, "the run's state does not fit this program"),
    ],
)
def test_a_foreign_state_is_refused(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    fit(config_of("none", "training.epochs=1"), tmp_path)
    (tmp_path / LAST / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        fit(config_of("none"), tmp_path, resume=True)


def test_the_state_is_safetensors_and_json(unbroken: Path) -> None:
    names = {path.name for path in (unbroken / "adaptive" / LAST).iterdir()}
    assert names == {"state.json", "parameters.safetensors", "optimiser.safetensors"}
    moments = load_file(unbroken / "adaptive" / LAST / "optimiser.safetensors")
    parameters = load_file(unbroken / "adaptive" / LAST / "parameters.safetensors")
    assert set(moments) == {f"{name}/{part}" for name in parameters for part in ("step", "exp_avg", "exp_avg_sq")}


def test_a_killed_process_leaves_a_whole_checkpoint_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    write_mmrec(DATASET, tmp_path)
    # Long enough to be killed on the way whatever the machine does meanwhile.
    settings = ["training.epochs=400", "training.patience=400", "training.monitor=recall@10", "training.batch_size=32"]
    command = [sys.executable, "-m", "training", "fit", "--dvib", "adaptive", "--dataset", DATASET.name]
    command += ["--data-dir", str(tmp_path), "--out", str(tmp_path / "killed"), "--device", "cpu"]
    command += [part for setting in settings for part in ("--set", setting)]
    log = tmp_path / "killed" / "log.jsonl"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "2"})
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size > 3_000):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05 * torch.rand(()).item())  # a random moment of an epoch
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    epochs = len(log.read_text().splitlines())
    killed = load_checkpoint(tmp_path / "killed")  # whole: read and checked against its fingerprint
    assert 1 <= killed.info.epoch <= epochs + 1
    assert not killed.info.finished
    assert epochs < 400
    state = load_resume_state(tmp_path / "killed")
    assert state is not None

    dataset = load_dataset(DATASET.name, tmp_path)
    shorter = [*settings, f"training.epochs={epochs + 3}"]
    config = build_config(
        model_name="vbpr", dataset=DATASET.name, variant="adaptive", preset="tuned", overrides=shorter
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Trainer(config, dataset, tmp_path / "killed").fit(resume=True)
        Trainer(config, dataset, tmp_path / "through").fit()
    finally:
        torch.set_num_threads(threads)
    assert_same_run(tmp_path / "killed", tmp_path / "through")
    leftovers = [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".") and path.is_dir()]
    assert leftovers == []
