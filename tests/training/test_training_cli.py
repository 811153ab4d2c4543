from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

from tests.helpers_training import make_config, planted_blocks, trained, write_mmrec
from training.checkpoint import INFO, MODEL, load_checkpoint
from training.cli import app
from training.common import console
from training.common.choices import Preset, Variant
from training.config import TrainingConfig, build_config, known_keys
from training.data.dataset import Split
from training.evaluation import EvaluationSet, evaluate, evaluate_model, popularity_scorer
from training.listing import described
from training.models import MODELS
from training.trainer import Trainer

DATASET = planted_blocks()
SMALL = ["training.batch_size=64", "training.learning_rate=0.01", "model.dimension=8", "training.monitor=recall@10"]


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up the process's logging; put it back."""
    monkeypatch.delenv("DVIB_DATA", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(DATASET, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    Trainer(make_config("constant", "training.epochs=2"), DATASET, folder).fit()
    return folder


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run("dvib-train", lambda: app, [str(argument) for argument in arguments])
    code = caught.value.code
    return 0 if code is None else int(code)


def fit(out: Path, data_dir: Path, *more: object, dataset: str = DATASET.name) -> int:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = ["--out", out, "--dataset", dataset, "--data-dir", data_dir, "--device", "cpu"]
    return command("fit", *arguments, *settings, *more)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("dvib-train: ")
    return err


def test_fit_trains_what_it_was_told(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "run"
    arguments = ("--dvib", "adaptive", "--epochs", 2, "--seed", 5, "--set", "dvib.gamma_d=0.5")
    assert fit(out, data_dir, *arguments) == 0
    info = load_checkpoint(out).info
    assert (info.config.dvib.variant, info.config.dvib.gamma_d) == ("adaptive", 0.5)
    assert (info.config.training.epochs, info.config.training.seed, info.config.model["dimension"]) == (2, 5, 8)
    assert info.finished
    shown, progress = capsys.readouterr()
    assert f"best epoch {info.epoch} of 2, validation recall@10 {info.metrics['valid']['recall@10']:.4f}" in " ".join(
        shown.split()
    )
    assert f"{info.metrics['test']['ndcg@10']:.4f}" in shown
    assert "vbpr + DVIB adaptive @10" in shown
    assert "popularity @10" in shown
    # One line per epoch on stderr, with every loss term.
    lines = [line for line in progress.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(term in lines[0] for term in ("total", "bpr", "distillation", "variational", "phi_mean", "recall@10"))


def test_an_existing_run_is_neither_overwritten_nor_continued_unasked(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, data_dir, "--epochs", 1) == 0
    first = (tmp_path / "best" / MODEL).read_bytes()
    capsys.readouterr()
    assert fit(tmp_path, data_dir, "--epochs", 2) == 2
    assert "already holds a run; pass --resume to continue it or --overwrite to train anew" in one_line(capsys)
    assert (tmp_path / "best" / MODEL).read_bytes() == first
    assert fit(tmp_path, data_dir, "--epochs", 2, "--resume", "--overwrite") == 2
    assert "--resume and --overwrite exclude each other" in one_line(capsys)
    assert fit(tmp_path, data_dir, "--epochs", 2, "--resume") == 0
    assert len(load_checkpoint(tmp_path).info.history) == 2
    capsys.readouterr()
    assert fit(tmp_path, data_dir, "--epochs", 2, "--resume", "--seed", 3) == 2
    assert "seed: 999 → 3" in capsys.readouterr().err.splitlines()[-1]
    assert fit(tmp_path, data_dir, "--epochs", 1, "--overwrite", "--seed", 3) == 0
    info = load_checkpoint(tmp_path).info
    assert (info.config.training.seed, len(info.history)) == (3, 1)


def held(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_refuses_to_train_anew_loses_nothing(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, data_dir, "--epochs", 1) == 0
    before = held(tmp_path)
    for refused in ("training.precision=float16", "training.monitor=recall@61"):  # known once the data are there
        assert fit(tmp_path, data_dir, "--overwrite", "--set", refused) == 2
        assert held(tmp_path) == before
    capsys.readouterr()
    assert fit(tmp_path, data_dir, "--epochs", 2, "--resume") == 0
    assert [line[:9] for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")] == ["epoch   2"]


def test_a_run_without_its_state_is_not_trained_anew_unasked(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, data_dir, "--epochs", 1) == 0
    shutil.rmtree(tmp_path / "last")
    before = held(tmp_path)
    capsys.readouterr()
    assert fit(tmp_path, data_dir, "--epochs", 2, "--resume") == 2
    assert (
        f"{tmp_path} holds a checkpoint but no state to resume from (last is missing); remove t"
        in capsys.readouterr().err
    )
    assert held(tmp_path) == before
    assert fit(tmp_path, data_dir, "--epochs", 2, "--overwrite") == 0


@pytest.mark.parametrize("name", ["m/[/b]", "r[lr=1]", r"$\frac$"])
def test_a_folders_name_is_no_markup(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert fit(tmp_path / name, data_dir, "--epochs", 1) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"{tmp_path / name}: best epoch 1 of 1, validation recall@10 0.")
    assert shown[1].startswith(f"curves: {tmp_path / name}/curves.png, ")


@pytest.mark.parametrize("writer", ["checkpoint.save_arrays", "checkpoint.save_tensors", "resume.save_file"])
def test_a_full_disk_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(f"training.{writer}", full)
    assert fit(tmp_path / "run", data_dir, "--epochs", 1) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"dvib-train: {tmp_path / 'run'}")
    assert last.endswith(": No space left on device")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "dvib.gama_d=1"), "unknown key 'dvib.gama_d'; did you mean 'dvib.gamma_d'?"),
        (("--model", "vbrp"), "no model 'vbrp'; did you mean 'vbpr'?"),
        (("--device", "tpu7"), "no device 'tpu7'"),
        (("--device", "meta"), "no device 'meta'"),
        (
            ("--set", "dvib.variant=adaptive"),
            "dvib.variant is chosen by --dvib, and presets depend on it; pass --dvib adaptive",
        ),
        (("--set", "training.seed=true"), "training.seed: a number is wanted, got True"),
        (("--set", "dvib.net_phi_hidden=[-1]"), "dvib.net_phi_hidden.0"),
        (("--set", "training.batch_size=99999999999999999999999"), "training.batch_size"),
        (("--set", "training.learning_rate=.inf"), "training.learning_rate"),
        (("--set", "dvib.sigma=.inf"), "dvib.sigma"),
        (("--epochs", "0"), "--epochs"),
        (("--no-such-option",), "--no-such-option"),
        (("--set", "training.monitor=recall@61"), "recall@61 exceeds the catalogue of 60 items"),
        (("--set", "training.learning_rate=1e30", "--dvib", "constant"), "the loss is not finite any more"),
        (("--set", "data.k_core=3"), "k_core=3 does not apply"),
    ],
)
def test_bad_input_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert fit(tmp_path / "run", data_dir, "--epochs", 4, *arguments) == 2
    _, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("dvib-train: ")
    assert "Traceback" not in err


def test_an_unknown_data_set_leaves_nothing_behind(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", data_dir, dataset="plantd") == 2
    assert "did you mean 'planted'?" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--dvib", "both"), ("--preset", "mine"), ("--epochs", 0), ("--seed", -1)])
def test_a_wrong_choice_is_a_usage_error(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]
) -> None:
    assert fit(tmp_path, data_dir, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluate_reports_the_stored_model_and_popularity(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: Split
) -> None:
    report = tmp_path / "reports" / "run.json"
    ks = (3, 10)
    assert command("evaluate", run, "--split", split, "--k", 10, "--k", 3, "--json", report, "--device", "cpu") == 0
    document = json.loads(report.read_text())
    epoch = load_checkpoint(run).info.epoch
    model = trained(make_config("constant"), DATASET, epoch).model
    data = EvaluationSet.of(DATASET, split)
    assert document["metrics"] == evaluate_model(model, data, DATASET.n_items, ks)
    assert document["popularity"] == evaluate(popularity_scorer(DATASET), data, DATASET.n_items, ks)
    assert (document["split"], document["users"]) == (split, 24)
    shown = capsys.readouterr().out
    assert "vbpr + DVIB constant @3" in shown
    assert f"{document['metrics']['recall@10']:.4f}" in shown


def test_evaluate_agrees_with_what_fit_wrote_down(run: Path, tmp_path: Path) -> None:
    report = tmp_path / "run.json"
    assert command("evaluate", run, "--json", report) == 0
    assert json.loads(report.read_text())["metrics"] == load_checkpoint(run).info.metrics["test"]


def test_evaluate_refuses_what_it_cannot_do(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", tmp_path) == 2
    assert "no checkpoint at" in one_line(capsys)
    assert command("evaluate", run, "--k", 61) == 2
    assert "--k 61 exceeds the catalogue of 60 items" in one_line(capsys)


def test_evaluate_refuses_a_checkpoint_of_another_version(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((run / "best" / INFO).read_text())
    (tmp_path / INFO).write_text(json.dumps({**document, "schema_version": 99}))
    assert command("evaluate", tmp_path) == 2
    assert "schema version 99, this program reads 1" in one_line(capsys)


def test_a_folder_that_is_no_run_is_not_written_to(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data", "best", "last"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text(name)
    for more in ((), ("--resume",), ("--overwrite",)):
        assert fit(tmp_path, data_dir, "--epochs", 1, *more) == 2
        assert "holds something that is no run" in one_line(capsys)
    assert {path.read_text() for path in tmp_path.rglob("precious")} == {"data", "best", "last"}
    file = tmp_path / "file"
    file.write_text("text")
    assert fit(file, data_dir, "--epochs", 1) == 2
    assert "is a file" in one_line(capsys)
    assert file.read_text() == "text"


def test_a_run_that_diverged_at_once_can_be_started_again(data_dir: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, data_dir, "--dvib", "constant", "--set", "training.learning_rate=1e30") == 2
    assert fit(tmp_path, data_dir, "--dvib", "constant", "--epochs", 1) == 0
    assert load_checkpoint(tmp_path).info.finished


def test_running_out_of_memory_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)  # more than any address space takes

    monkeypatch.setattr("training.commands.fit.Trainer", too_much)
    assert fit(tmp_path / "run", data_dir) == 2
    assert "not enough memory" in capsys.readouterr().err.splitlines()[-1]


def test_a_small_catalogue_is_evaluated_at_the_cut_offs_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = planted_blocks(n_users=12, n_items=40)
    Trainer(make_config("none", "training.epochs=1"), small, tmp_path / "run").fit()
    assert command("evaluate", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "vbpr @20" in shown
    assert "@50" not in shown
    assert command("evaluate", tmp_path / "run", "--k", 50) == 2
    assert "--k 50 exceeds the catalogue of 40 items" in one_line(capsys)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 2
    out, err = capsys.readouterr()
    assert "evaluate" in out + err
    assert "see dvib-train --help" not in err


def listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr("training.commands.listing.output", Console(width=400))
    assert command("list", *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def rows_of(shown: str) -> dict[str, list[str]]:
    """Return first cell → the other cells, for every row of the tables shown."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    return {first: others for first, *others in cells}


def test_list_shows_what_there_is_to_choose_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(listed(capsys, monkeypatch))
    assert set(rows) >= {*MODELS, *get_args(Variant), *get_args(Preset), "ml-100k", "tiktok"}
    assert rows["vbpr"][1:] == ["He and McAuley, AAAI 2016", "128", "yes"]
    assert {name: rows[name][2] for name in ("mmgcn", "grcn", "selfcf", "layergcn", "bm3")} == {
        "mmgcn": "64",
        "grcn": "192",
        "selfcf": "128",
        "layergcn": "64",
        "bm3": "64",
    }  # spec §5
    assert {name for name in MODELS if rows[name][3] == "no"} == {"selfcf", "layergcn"}
    for name in MODELS:
        what, paper = described(name)
        assert what, name
        assert paper, name
    assert "fetched" in rows["ml-100k"][0]
    assert "tuned (vbpr)" in rows["ml-100k"][1]


def test_list_shows_every_setting_with_its_value_meaning_and_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(listed(capsys, monkeypatch, "vbpr"))
    config = build_config(model_name="vbpr", dataset="ml-100k", preset="tuned")
    assert list(rows) == known_keys("vbpr")
    assert rows["model.regularisation"][0] == "1.5" == str(config.model["regularisation"])
    assert "validation" in rows["model.regularisation"][2]
    assert rows["training.learning_rate"][0] == "0.002"
    assert rows["data.min_rating"][0] == "4.0"
    assert rows["training.seed"] == ["999", TrainingConfig.model_fields["seed"].description, "MMRec"]
    assert rows["dvib.net_phi_hidden"][0] == "[32, 32]"
    assert rows["dvib.perturbed_terms"][0] == "null"
    assert all(meaning for _, meaning, _ in rows.values())
    reference = rows_of(
        listed(capsys, monkeypatch, "bm3", "--preset", "reference", "--dvib", "adaptive", "--dataset", "x")
    )
    assert reference["dvib.perturbed_terms"][0] == '["modalities"]'
    assert (reference["model.id_noise"][0], reference["data.min_rating"][0]) == ("0.01", "null")


def test_list_refuses_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", "vbrp") == 2
    assert "no model 'vbrp'; did you mean 'vbpr'?" in one_line(capsys)


def test_fit_takes_the_tuned_preset_unless_told_otherwise(data_dir: Path, tmp_path: Path) -> None:
    assert fit(tmp_path / "run", data_dir, "--epochs", 1, "--set", "data.feature_scaling=global") == 0
    config = load_checkpoint(tmp_path / "run").info.config
    assert (config.preset, config.data.feature_scaling) == ("tuned", "global")
