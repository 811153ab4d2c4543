from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers_runs import assert_same_run
from tests.helpers_training import Interrupted, StopAt, make_config, planted_blocks, write_mmrec
from tests.training.commands import command, error_line
from training.checkpoint import load_checkpoint
from training.common.errors import ConfigError
from training.config import build_config
from training.data.load import load_dataset
from training.reporting import ConsoleReporter
from training.resume import LAST
from training.runs.found import read_checkpoint_info
from training.runs.lock import exclusive
from training.runs.sweep import read_sweep
from training.trainer import Trainer

DATASET = planted_blocks()
SMALL: dict[str, Any] = {
    "training.epochs": 2,
    "training.batch_size": 64,
    "training.monitor": "recall@10",
    "model.dimension": 8,
}
FILE: dict[str, Any] = {
    "base": {"dataset": "planted", "preset": "paper", "seeds": [0, 1], "set": SMALL},
    "runs": {
        "plain": {"model": "vbpr"},
        "dvib_a": {"model": "vbpr", "dvib": "adaptive", "set": {"dvib.gamma_d": 0.5}},
        "one": {"model": "bm3", "seeds": [7]},
    },
    "compare": {"baseline": "plain", "metrics": ["recall@10", "ndcg@5"]},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(DATASET, folder)
    return folder


def written(folder: Path, document: object) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    return path


def sweep(path: Path, out: Path, data_dir: Path, *more: object) -> int:
    return command("sweep", path, "--out", out, "--data-dir", data_dir, "--device", "cpu", *more)


def test_a_file_says_which_runs_there_are(tmp_path: Path) -> None:
    plan = read_sweep(written(tmp_path, FILE), tmp_path / "out")
    assert [(run.name, run.config.training.seed, run.folder) for run in plan.planned] == [
        (name, seed, tmp_path / "out" / name / f"seed-{seed}")
        for name, seed in (("plain", 0), ("plain", 1), ("dvib_a", 0), ("dvib_a", 1), ("one", 7))
    ]
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    assert plan.planned[3].config == build_config(
        model_name="vbpr",
        dataset="planted",
        variant="adaptive",
        preset="paper",
        overrides=[*overrides, "dvib.gamma_d=0.5", "training.seed=1"],
    )
    assert (plan.baseline, plan.metrics) == ("plain", ("recall@10", "ndcg@5"))


def test_what_a_run_says_wins_over_the_base(tmp_path: Path) -> None:
    document = {
        "base": {"dataset": "planted", "preset": "paper", "seeds": [0], "set": {**SMALL, "dvib.gamma_d": 0.3}},
        "runs": {"a": {"preset": "reference", "set": {"training.epochs": 9}}, "b": None},
    }
    first, second = (run.config for run in read_sweep(written(tmp_path, document), tmp_path).planned)
    assert (first.preset, first.training.epochs, first.dvib.gamma_d) == ("reference", 9, 0.3)
    assert (second.preset, second.training.epochs, second.model_name) == ("paper", 2, "vbpr")


def test_transforms_of_a_run_are_those_of_its_data(tmp_path: Path) -> None:
    document = {"base": {"transforms": ["noise:0.1"]}, "runs": {"a": {}, "b": {"transforms": ["noise:0.05"]}}}
    first, second = (run.config for run in read_sweep(written(tmp_path, document), tmp_path).planned)
    assert first == build_config(
        model_name="vbpr", dataset="ml-100k", preset="tuned", overrides=['data.transforms=["noise:0.1"]']
    )
    assert first.data != second.data


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"run": {}}, "unknown key 'run'; did you mean 'runs'?"),
        ({"runs": {}}, "runs: at least one run is wanted"),
        ({"runs": {"a": {"modle": "vbpr"}}}, "runs.a: unknown key 'modle'; did you mean 'model'?"),
        ({"base": {"sed": [1]}, "runs": {"a": {}}}, "base: unknown key 'sed'; did you mean 'seeds'?"),
        ({"runs": {"a": {"model": "vbrp"}}}, "runs.a: no model 'vbrp'; did you mean 'vbpr'?"),
        ({"runs": {"a": {"set": {"dvib.gama_d": 1}}}}, "unknown key 'dvib.gama_d'; did you mean 'dvib.gamma_d'?"),
        ({"runs": {"a": {"set": {"training.epochs": 0}}}}, "runs.a: training.epochs: "),
        ({"runs": {"a": {"dvib": "both"}}}, "runs.a.dvib: "),
        ({"runs": {"a": {"seeds": []}}}, "runs.a.seeds: "),
        ({"runs": {"a": {"seeds": [1, 1]}}}, "a seed is there twice in [1, 1]"),
        ({"runs": {"a": {"seeds": [-1]}}}, "training.seed: "),
        ({"runs": {"a": {"seeds": 3}}}, "runs.a.seeds: "),
        ({"runs": {"../a": {}}}, "a name of letters, digits and ._+- is wanted, got '../a'"),
        ({"runs": {"a": "vbpr"}}, "runs.a: a mapping of names is wanted"),
        ({"runs": {"a": {}, "b": {"dataset": "other"}}}, "one dataset is wanted, got ml-100k, other"),
        (
            {"base": {"set": {"training.seed": 5}}, "runs": {"a": {}}},
            "base.set: training.seed is not set here; use seeds",
        ),
        ({"runs": {"a": {"set": {"training.seed": 5}}}}, "runs.a.set: training.seed is not set here; use seeds"),
        (
            {"runs": {"a": {"set": {"dvib.variant": "adaptive"}}}},
            "runs.a.set: dvib.variant is not set here; use dvib: adaptive",
        ),
        (
            {"base": {"set": {"data.transforms": ["noise:0.1"]}}, "runs": {"a": {"transforms": ["noise:0.2"]}}},
            "runs.a.set: data.transforms and transforms say the same; keep one",
        ),
        ({"runs": {"a": {}, "b": {"set": {"data.k_core": 10}}}}, "one data.k_core is wanted, got 0, 10"),
        ({"runs": {"a": {}, "b": {"set": {"data.min_rating": 3}}}}, "one data.min_rating is wanted, got 4.0, 3.0"),
        ({"runs": {"a": {}, "b": {"set": {"data.split_seed": 1}}}}, "one data.split_seed is wanted, got 0, 1"),
        ({"runs": {"plain": {}}, "compare": {"baseline": "plan"}}, "no run 'plan'; did you mean 'plain'?"),
        ({"runs": {"a": {}}, "compare": {"metrics": ["recal@20"]}}, "compare.metrics: no metric 'recal@20'"),
        ("runs: {a: {}, a: {}}", "the key 'a' is there twice"),
    ],
)
def test_a_mistake_is_found_before_the_first_run(tmp_path: Path, document: object, message: str) -> None:
    path = written(tmp_path, document)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_sweep_trains_what_is_missing_and_compares_everything(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path, FILE), tmp_path / "out"
    assert sweep(path, out, data_dir, "--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json") == 0
    shown, progress = capsys.readouterr()
    assert "[1/5] plain, seed 0: training in" in progress
    assert progress.count(": done, validation recall@10 ") == 5
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["line"], row["metric"], row["seeds"]) for row in rows[::2]] == [
        ("plain", "recall@10", "0 1"),
        ("dvib_a", "recall@10", "0 1"),
        ("one", "recall@10", "7"),
    ]
    assert {row["baseline"] for row in rows} == {"", "plain"}
    assert all(row["line"] in shown for row in rows)
    config = make_config("none", "training.epochs=2", "training.learning_rate=0.001", "training.seed=1")
    Trainer(config, load_checkpoint(out / "plain" / "seed-1").dataset, tmp_path / "alone").fit()
    assert_same_run(tmp_path / "alone", out / "plain" / "seed-1")

    # Once more: nothing is trained, and the table is the same.
    def no_training(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("training.runs.sweep.Trainer", no_training)
    assert sweep(path, out, data_dir, "--json", tmp_path / "again.json") == 0
    again, progress = capsys.readouterr()
    assert progress.count(": is there already, validation recall@10 ") == 5
    assert again == shown
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "t.json").read_text())


def test_a_killed_sweep_goes_on_to_the_same_bits(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, {**FILE, "runs": {name: FILE["runs"][name] for name in ("plain", "dvib_a")}})
    assert sweep(path, tmp_path / "through", data_dir) == 0
    monkeypatch.setattr("training.trainer.SAVE_SECONDS", -1.0)
    for steps in (3, 12, 9):
        stop = StopAt(steps=steps)
        with monkeypatch.context() as patch:
            patch.setattr(ConsoleReporter, "step_done", lambda _, stop=stop: stop.step_done())
            with pytest.raises(Interrupted):
                sweep(path, tmp_path / "killed", data_dir)
    epochs: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "epoch_started", lambda _, epoch, __: epochs.append(epoch))
        assert sweep(path, tmp_path / "killed", data_dir) == 0
    assert epochs == [2, 1, 2, 1, 2]  # the first run was over, the second had made one epoch
    for name in ("plain/seed-0", "plain/seed-1", "dvib_a/seed-0", "dvib_a/seed-1"):
        assert_same_run(tmp_path / "killed" / name, tmp_path / "through" / name)


def test_a_longer_sweep_goes_on_with_its_finished_runs(tmp_path: Path, data_dir: Path) -> None:
    document = {**FILE, "runs": {"plain": {}}}
    longer = {**document, "base": {**FILE["base"], "set": {**SMALL, "training.epochs": 4}}}
    assert sweep(written(tmp_path, document), tmp_path / "out", data_dir) == 0
    assert sweep(written(tmp_path, longer), tmp_path / "out", data_dir) == 0
    assert sweep(written(tmp_path, longer), tmp_path / "at-once", data_dir) == 0
    assert len(load_checkpoint(tmp_path / "out" / "plain" / "seed-1").info.history) == 4
    assert_same_run(tmp_path / "out" / "plain" / "seed-1", tmp_path / "at-once" / "plain" / "seed-1")


def trained_lengths(out: Path) -> dict[str, int]:
    return {
        str(path.parent.parent.relative_to(out)): len(read_checkpoint_info(path.parent).history)
        for path in sorted(out.glob("*/*/best/checkpoint.json"))
    }


def with_set(**settings: Any) -> dict[str, Any]:
    own = {key.replace("__", "."): value for key, value in settings.items()}
    return {**FILE["base"], "set": {**SMALL, **own}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training__epochs": 1}, "training.epochs=1 was 2"),
        ({"dvib__sigma": 0.5}, "dvib.sigma=0.5 was 0.001"),
    ],
)
def test_a_file_that_no_longer_fits_what_is_there_is_refused_before_anything_is_trained(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], said: str
) -> None:
    out, runs = tmp_path / "out", {"plain": {}, "dvib_a": {"dvib": "adaptive"}}
    first = {"base": {**FILE["base"], "seeds": [1]}, "runs": runs, "compare": {"baseline": "plain"}}
    assert sweep(written(tmp_path, first), out, data_dir) == 0
    capsys.readouterr()
    changed = {"base": with_set(**settings), "runs": runs, "compare": {"baseline": "plain"}}
    assert sweep(written(tmp_path, changed), out, data_dir) == 2
    shown, progress = capsys.readouterr()
    assert shown == ""
    assert f"plain, seed 1: {said} in {out / 'plain' / 'seed-1'}" in progress
    assert trained_lengths(out) == {"plain/seed-1": 2, "dvib_a/seed-1": 2}


def test_a_run_that_is_longer_than_the_file_asks_is_not_in_the_table(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Killed after its third epoch, with its best in the first: what is there does not say yet how long it is.
    base = with_set(training__epochs=3, training__learning_rate=1e-12)
    document = {"base": {**base, "seeds": [0]}, "runs": {"plain": {}, "other": {"model": "bm3"}}}
    out = tmp_path / "out"
    long = read_sweep(written(tmp_path, document), out).planned[0]
    Trainer(long.config, load_dataset("planted", data_dir, long.config.data), long.folder).fit(test=False)
    assert trained_lengths(out)["plain/seed-0"] == 1
    document["base"]["set"]["training.epochs"] = 2
    assert sweep(written(tmp_path, document), out, data_dir, "--json", tmp_path / "t.json") == 1
    assert "plain, seed 0: not in the table, failed: " in capsys.readouterr().out
    assert [line["line"] for line in json.loads((tmp_path / "t.json").read_text())["lines"]] == ["other"]


def test_what_changes_the_log_alone_changes_nothing(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "out", {"plain": {}, "dvib_a": {"dvib": "adaptive"}}
    compared = {"runs": runs, "compare": {"baseline": "plain"}}
    assert sweep(written(tmp_path, {"base": {**FILE["base"], "seeds": [0]}, **compared}), out, data_dir) == 0
    capsys.readouterr()
    quiet = {"base": with_set(training__watch_every=0), **compared}
    assert sweep(written(tmp_path, quiet), out, data_dir, "--json", tmp_path / "t.json") == 0
    assert capsys.readouterr().err.count("is there already") == 2
    lines = json.loads((tmp_path / "t.json").read_text())["lines"]
    assert [(line["line"], line["seeds"], line["baseline"]) for line in lines] == [
        ("plain", [0, 1], None),
        ("dvib_a", [0, 1], "plain"),
    ]


def test_a_run_that_stopped_early_is_one_of_any_longer_budget(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"training__learning_rate": 1e-12, "training__patience": 1}
    document = {"base": {**with_set(**still, training__epochs=5), "seeds": [0]}, "runs": {"plain": {}}}
    out = tmp_path / "out"
    assert sweep(written(tmp_path, document), out, data_dir) == 0
    assert trained_lengths(out) == {"plain/seed-0": 2}
    capsys.readouterr()
    document["base"] = with_set(**still, training__epochs=9)
    assert sweep(written(tmp_path, document), out, data_dir, "--json", tmp_path / "t.json") == 0
    assert capsys.readouterr().err.count("is there already") == 1
    (line,) = json.loads((tmp_path / "t.json").read_text())["lines"]
    assert (line["line"], line["seeds"]) == ("plain", [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compare": {"metrics": ["recall@5000"]}}, "compare.metrics: recall@5000 exceeds the catalogue of 60 items"),
        ({"runs": {"a": {"set": {"training.monitor": "ndcg@99"}}}}, "training.monitor=ndcg@99 exceeds the catalogue"),
        ({"base": {**FILE["base"], "dataset": "elsewhere"}}, "no data set 'elsewhere' in "),
    ],
)
def test_what_the_data_do_not_allow_is_found_before_the_first_run(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert sweep(written(tmp_path, {**FILE, "compare": {}, **change}), tmp_path / "out", data_dir) == 2
    shown, progress = capsys.readouterr()
    assert shown == ""
    assert progress.count("dvib-train: ") == 1
    assert message in progress
    assert trained_lengths(tmp_path / "out") == {}


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"wild": {"dvib": "constant", "seeds": [0], "set": {"training.learning_rate": 1e30}}, "plain": {}}
    path = written(tmp_path, {"base": FILE["base"], "runs": runs, "compare": {"baseline": "wild", "metrics": ["hr@5"]}})
    assert sweep(path, tmp_path / "out", data_dir) == 1
    shown, progress = capsys.readouterr()
    assert "[1/3] wild, seed 0: failed: DivergedError" in progress
    assert "wild, seed 0: not in the table, failed: DivergedError" in shown
    assert load_checkpoint(tmp_path / "out" / "plain" / "seed-1").info.finished
    # Another data set under the same name is not mixed with what is there.
    other = tmp_path / "other"
    write_mmrec(planted_blocks(seed=1), other)
    assert sweep(path, tmp_path / "out", other) == 1
    assert "the data have changed since the run was started" in capsys.readouterr().out


def test_a_run_without_its_state_is_refused_with_what_a_sweep_can_do(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"plain": {"seeds": [0]}}
    run = tmp_path / "out" / "plain" / "seed-0"
    assert sweep(written(tmp_path, {"base": FILE["base"], "runs": runs}), tmp_path / "out", data_dir) == 0
    shutil.rmtree(run / LAST)
    longer = written(tmp_path, {"base": with_set(training__epochs=3), "runs": runs})
    assert sweep(longer, tmp_path / "out", data_dir) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if "failed: " in line]
    assert failed.endswith(f"{LAST} is missing); remove that folder to train anew, or choose another")
    shutil.rmtree(run)
    assert sweep(longer, tmp_path / "out", data_dir) == 0


def test_the_experiments_that_come_with_the_project_can_be_read(tmp_path: Path) -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "experiments").iterdir())
    assert files
    for path in files:
        assert read_sweep(path, tmp_path).planned


def test_two_sweeps_do_not_work_in_one_folder(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(tmp_path / "out"):
        assert sweep(written(tmp_path, FILE), tmp_path / "out", data_dir) == 2
    assert "another process is working in it" in error_line(capsys)
