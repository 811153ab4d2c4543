"""What goes wrong in a search: what is a trial's result, and what is not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.helpers_training import make_config, planted_blocks, write_mmrec
from tests.training.commands import command
from training.checkpoint import CheckpointInfo
from training.common.choices import Variant
from training.common.errors import CheckpointError, ConfigError, DataError, DvibError
from training.runs.space import Axis
from training.runs.tune import Search, tune
from training.trainer import Trainer

RATES = {"training.learning_rate": Axis(low=0.001, high=0.1, log=True)}
BOTH: tuple[Variant, ...] = ("none", "adaptive")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(planted_blocks(), folder)
    return folder


class Watch:
    """Keeps the results."""

    def __init__(self) -> None:
        self.results: list[tuple[str, int, str, bool]] = []

    def begin(self, *_: object) -> None:
        pass

    def epoch(self, *_: object) -> None:
        pass

    def end(self, variant: Variant, slot: int, result: str, *, known: bool) -> None:
        self.results.append((variant, slot, result, known))


def search(folder: Path, data_dir: Path, trials: int, *settings: str, **more: Any) -> Search:
    configs: dict[Variant, Any] = {variant: make_config(variant, "training.epochs=2", *settings) for variant in BOTH}
    spaces: dict[Variant, dict[str, Axis]] = dict.fromkeys(BOTH, RATES)
    return Search(folder / "study.sqlite", configs, spaces, trials, **{"data_dir": data_dir, **more})


def states(whole: Search, variant: Variant) -> list[TrialState]:
    study = optuna.load_study(study_name=variant, storage=f"sqlite:///{whole.file}")
    return [trial.state for trial in study.trials]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.compile=true", "needs a C++ compiler, and 'nope' is not there"),
        ("training.precision=float16", "training.precision=float16 needs CUDA"),
        ("training.monitor=recall@99", "training.monitor=recall@99 exceeds the catalogue of 60 items"),
    ],
)
def test_what_no_trial_could_do_is_said_in_one_line_and_leaves_no_study(
    tmp_path: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    message: str,
) -> None:
    monkeypatch.setenv("CXX", "nope")
    study = tmp_path / "t.sqlite"
    arguments = ["--study", study, "--dataset", "planted", "--trials", 2, "--epochs", 1, "--device", "cpu"]
    assert command("tune", *arguments, "--data-dir", data_dir, "--set", setting) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert next(line for line in err.splitlines() if message in line).startswith("dvib-train: ")
    assert "failed" not in err
    assert not study.exists()


def test_a_choice_that_no_trial_could_take_is_found_before_the_first(tmp_path: Path, data_dir: Path) -> None:
    axes = {"training.precision": Axis(choices=("bfloat16", "float16", "float32"))}
    whole = replace(search(tmp_path, data_dir, 2), spaces={"none": RATES, "adaptive": axes})
    with pytest.raises(ConfigError, match="float16 needs CUDA"):
        tune(whole, Watch())
    assert not whole.file.exists()


@pytest.mark.parametrize("kind", [DataError, RuntimeError, MemoryError, OSError])
def test_what_is_not_the_settings_fault_is_no_result(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    expected = tune(search(tmp_path / "through", data_dir, 2), Watch())
    whole = search(tmp_path / "broken", data_dir, 2)
    fit = Trainer.fit
    calls: list[Path] = []

    def breaks_once(self: Trainer, **options: Any) -> CheckpointInfo:
        calls.append(self.out)
        if len(calls) == 2:
            raise kind("the machine's fault")
        return fit(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", breaks_once)
        with pytest.raises(kind, match="the machine's fault"):
            tune(whole, Watch())
    assert states(whole, "adaptive") == [TrialState.RUNNING]
    watch = Watch()
    winners = tune(whole, watch)
    assert [(w.slot, w.settings, w.valid, w.test) for w in winners] == [
        (w.slot, w.settings, w.valid, w.test) for w in expected
    ]
    assert [known for *_, known in watch.results] == [True, False, False, False]
    assert [winner.counts.failed for winner in winners] == [0, 0]


def test_runs_that_another_search_left_are_refused_with_what_a_search_can_do(tmp_path: Path, data_dir: Path) -> None:
    """The file of studies was removed, and what it had trained was not."""
    (first, _) = tune(search(tmp_path, data_dir, 1), Watch())
    (tmp_path / "study.sqlite").unlink()
    other = search(tmp_path, data_dir, 1, "training.batch_size=32")
    with pytest.raises(CheckpointError) as caught:
        tune(other, Watch())
    assert str(caught.value).startswith(f"{first.folder}: the run was started with another 'training' (batch_size: ")
    assert str(caught.value).endswith("; go on with the same settings, remove that folder, or choose another")
    shutil.rmtree(other.runs)
    assert len(tune(other, Watch())) == 2


def test_drawn_settings_that_do_not_go_together_are_a_result(tmp_path: Path, data_dir: Path) -> None:
    # Both corners fit together; convex with more than 1 does not.
    axes = {"dvib.mix": Axis(choices=("convex", "add")), "dvib.gamma_d": Axis(low=0.9, high=3.0)}
    whole = replace(search(tmp_path, data_dir, 8), spaces={"none": RATES, "adaptive": axes})
    watch = Watch()
    plain, dvib = tune(whole, watch)
    assert (plain.counts.total, plain.counts.failed, dvib.counts.total) == (8, 0, 8)
    failed = [result for *_, result, _ in watch.results if result.startswith("failed: ")]
    assert len(failed) == dvib.counts.failed > 0
    assert all("ConfigError: dvib.mix=convex" in result for result in failed)


def pairs(*first: str) -> dict[str, Axis]:
    """Of these, FREEDOM's projected features and DVIB's scores do not go together, which the first step says."""
    return {"dvib.distil_on": Axis(choices=first), "model.inject_at": Axis(choices=("graph", "projected"))}


def freedom(folder: Path, data_dir: Path, axes: dict[str, Axis]) -> Search:
    config = make_config("adaptive", "training.epochs=1", model="freedom")
    return Search(folder / "study.sqlite", {"adaptive": config}, {"adaptive": axes}, 8, data_dir=data_dir)


def test_drawn_settings_that_the_first_step_refuses_are_a_result(tmp_path: Path, data_dir: Path) -> None:
    watch = Watch()
    (winner,) = tune(freedom(tmp_path, data_dir, pairs("scores", "features")), watch)
    assert winner.settings != {"dvib.distil_on": "scores", "model.inject_at": "projected"}
    assert 0 < winner.counts.failed < winner.counts.total == 8
    failed = [result for _, _, result, _ in watch.results if result.startswith("failed: ")]
    assert len(failed) == winner.counts.failed
    assert all("reaches nothing that dvib.distil_on=scores compares" in result for result in failed)


def test_ends_that_the_first_step_refuses_are_found_before_the_first_trial(tmp_path: Path, data_dir: Path) -> None:
    whole = freedom(tmp_path, data_dir, pairs("features", "scores"))
    with pytest.raises(ConfigError, match="reaches nothing"):
        tune(whole, Watch())
    assert not whole.file.exists()


def test_ends_that_diverge_in_the_first_step_are_a_result(tmp_path: Path, data_dir: Path) -> None:
    axes = {"model.regularisation": Axis(choices=(0.01, 1e39))}
    whole = replace(search(tmp_path, data_dir, 6), spaces=dict.fromkeys(BOTH, axes))
    for winner in tune(whole, Watch()):
        assert 0 < winner.counts.failed < winner.counts.total == 6


def test_settings_are_tried_together_at_both_ends(tmp_path: Path, data_dir: Path) -> None:
    mix, share = Axis(choices=("convex",)), Axis(low=1.5, high=2.0)
    for axes in (
        {"dvib.mix": mix, "dvib.gamma_d": share},
        {"dvib.mix": Axis(choices=("add", "convex")), "dvib.gamma_d": Axis(low=0.5, high=2.0)},
    ):
        whole = replace(search(tmp_path, data_dir, 2), spaces={"none": RATES, "adaptive": axes})
        with pytest.raises(ConfigError, match=r"the search space of adaptive at its .* ends: dvib\.mix=convex"):
            tune(whole, Watch())
    assert list(tmp_path.iterdir()) == []


def test_no_winner_is_tested_before_every_variant_has_one(tmp_path: Path, data_dir: Path) -> None:
    axes = {"training.learning_rate": Axis(choices=(1e30,))}
    whole = replace(search(tmp_path, data_dir, 1), spaces={"none": RATES, "adaptive": axes})
    with pytest.raises(DvibError, match="adaptive: every trial failed"):
        tune(whole, Watch())
    # The plain model's study is not closed: there may be more trials.
    watch = Watch()
    with pytest.raises(DvibError, match="adaptive: every trial failed"):
        tune(replace(whole, trials=2), watch)
    assert [known for *_, known in watch.results] == [True, True, False, False]
    assert states(whole, "none") == [TrialState.COMPLETE] * 2
