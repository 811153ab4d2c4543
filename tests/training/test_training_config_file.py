from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers_training import make_config, planted_blocks, write_mmrec
from tests.training.commands import command, error_line
from training.checkpoint import INFO, load_checkpoint
from training.common.errors import ConfigError
from training.config import RunConfig, build_config
from training.models import MODELS
from training.runs.config_file import Choices, config_from, with_settings
from training.trainer import Trainer

DATASET = planted_blocks()


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_whole_configuration_read_back_is_the_same(tmp_path: Path, model: str, form: str) -> None:
    config = make_config("adaptive", "dvib.gamma_d=0.37", "data.k_core=2", model=model, preset="reference")
    document = config.model_dump(mode="json")
    path = written(tmp_path, json.dumps(document) if form == "json" else yaml.safe_dump(document), f"run.{form}")
    assert config_from(Choices(), path) == config


def test_a_finished_runs_checkpoint_is_a_configuration(tmp_path: Path) -> None:
    config = make_config("constant", "training.epochs=1", "dvib.sigma=0.02")
    Trainer(config, DATASET, tmp_path / "run").fit()
    assert config_from(Choices(), tmp_path / "run" / "best" / INFO) == config
    again = config_from(Choices(), tmp_path / "run" / "best" / INFO, ["training.seed=4"])
    assert again == with_settings(config, {"training.seed": 4}) != config


def test_a_file_wins_over_the_preset_and_the_command_line_over_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model_name: bm3\ndataset: toy\npreset: paper\nmodel: {layers: 2}\n"
        "dvib: {variant: adaptive, gamma_r: 1e-2, net_phi_hidden: [8]}\ntraining: {epochs: 7, seed: 3}\n",
    )
    config = config_from(Choices(), path, ["training.epochs=9"])
    assert (config.model_name, config.dataset, config.preset, config.dvib.variant) == (
        "bm3",
        "toy",
        "paper",
        "adaptive",
    )
    assert (config.model["layers"], config.dvib.gamma_r, config.dvib.net_phi_hidden) == (2, 0.01, (8,))
    assert (config.training.epochs, config.training.seed) == (9, 3)
    said = {"model_name": "bm3", "dataset": "toy", "variant": "adaptive", "preset": "paper"}
    rest = ["model.layers=2", "dvib.gamma_r=0.01", "dvib.net_phi_hidden=[8]", "training.epochs=9", "training.seed=3"]
    assert config == build_config(**said, overrides=rest)  # type: ignore[arg-type]
    chosen = config_from(Choices(dvib="none", preset="reference", dataset="other"), path)
    assert (chosen.dvib.variant, chosen.preset, chosen.dataset) == ("none", "reference", "other")
    assert chosen.dvib.mix == "convex"  # the other preset's
    assert chosen.model["layers"] == 2  # still the file's


def test_without_a_file_the_defaults_are_the_command_lines() -> None:
    expected = build_config(model_name="vbpr", dataset="ml-100k", preset="tuned")
    assert config_from(Choices()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rte: 1}", "unknown key 'training.learning_rte'; did you mean 'training.learning_rate'?"),
        ("trainin: {epochs: 1}", "unknown key 'trainin'; did you mean 'training'?"),
        ("model_name: vbrp", "no model 'vbrp'; did you mean 'vbpr'?"),
        ("model_name: 7", "model_name: a name is wanted, got 7"),
        ("preset: pape", "preset: no 'pape'; did you mean 'paper'?"),
        ("dvib: {variant: adaptiv}", "dvib.variant: no 'adaptiv'; did you mean 'adaptive'?"),
        ("training: {epochs: many}", "training.epochs: "),
        ("training: {epochs: 0}", "training.epochs: "),
        ("training: {learning_rate: true}", "training.learning_rate: a number is wanted, got True"),
        ("model: {dimension: 8.5}", "model.dimension: "),
        ("model: [1]", "model: a mapping of names is wanted"),
        ("- training", "a mapping of names is wanted"),
        ("", "a mapping of names is wanted"),
        ("training: {epochs: 1", "no YAML"),
        ("training: {epochs: 1, seed: 2, epochs: 3}", "the key 'epochs' is there twice in what begins on line 1"),
        ("a: !!python/object/apply:os.system [true]", "no YAML"),
        ("schema_name: dvib.bundle", "a checkpoint.json is wanted, got 'dvib.bundle'"),
        ("dvib: {mix: convex, gamma_d: 2}", "dvib.mix=convex"),
    ],
)
def test_an_error_names_the_file_the_key_and_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config_from(Choices(), path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_json_is_read_as_strictly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key 'seed' is there twice; keep one"):
        config_from(Choices(), written(tmp_path, '{"training": {"seed": 1, "seed": 2}}', "a.json"))
    with pytest.raises(ConfigError, match=r"b\.json: no JSON"):
        config_from(Choices(), written(tmp_path, "training: {seed: 1}", "b.json"))
    with pytest.raises(ConfigError, match="there is no such file"):
        config_from(Choices(), tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        config_from(Choices(), written(tmp_path, '{"training": {"learning_rate": Infinity}}', "c.json"))
    (tmp_path / "d.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no JSON"):
        config_from(Choices(), tmp_path / "d.json")


def test_a_mistake_on_the_command_line_is_not_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, "training: {epochs: 3}")
    for choices, override in ((Choices(), "training.epochs=0"), (Choices(model="vbrp"), "training.epochs=1")):
        with pytest.raises(ConfigError) as caught:
            config_from(choices, path, [override])
        assert str(path) not in str(caught.value)


def test_what_the_command_line_puts_right_is_no_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, "robust: {amr: true}\ntraining: {epochs: many}")
    put_right = ["robust.amr=false", "training.epochs=2"]
    config = config_from(Choices(model="bm3"), path, put_right)
    assert (config.robust.amr, config.training.epochs) == (False, 2)
    # What is left of the file's mistakes is still the file's.
    for left in (put_right[:1], put_right[1:]):
        with pytest.raises(ConfigError) as caught:
            config_from(Choices(model="bm3"), path, left)
        assert str(caught.value).startswith(f"{path}: ")


def test_fit_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mmrec(DATASET, tmp_path / "data")
    path = written(
        tmp_path,
        "dataset: planted\ndvib: {variant: constant}\nmodel: {dimension: 8}\n"
        "training: {epochs: 2, monitor: recall@10, batch_size: 64}\n",
    )
    arguments = ["--data-dir", tmp_path / "data", "--device", "cpu"]
    assert command("fit", "--config", path, "--out", tmp_path / "one", *arguments) == 0
    first = load_checkpoint(tmp_path / "one").info
    assert (first.config.dvib.variant, first.config.training.epochs, first.config.preset) == ("constant", 2, "tuned")
    # What a finished run was, once more: with another seed, and exactly so.
    stored = tmp_path / "one" / "best" / INFO
    assert command("fit", "--config", stored, "--out", tmp_path / "two", "--seed", 1, *arguments) == 0
    assert command("fit", "--config", stored, "--out", tmp_path / "three", *arguments) == 0
    second, third = (load_checkpoint(tmp_path / name).info for name in ("two", "three"))
    assert second.config == with_settings(first.config, {"training.seed": 1})
    assert (third.config, third.metrics) == (first.config, first.metrics)
    assert second.metrics != first.metrics
    capsys.readouterr()
    assert command("fit", "--config", written(tmp_path, "trainig: {}"), "--out", tmp_path / "four") == 2
    assert "run.yaml: unknown key 'trainig'; did you mean 'training'?" in error_line(capsys)
    assert not (tmp_path / "four").exists()


def test_settings_changed_in_a_configuration_are_checked(tmp_path: Path) -> None:
    config: RunConfig = make_config("adaptive")
    changed: Any = with_settings(config, {"dvib.gamma_d": 0.25, "model.dimension": 4})
    assert (changed.dvib.gamma_d, changed.model["dimension"], changed.dvib.variant) == (0.25, 4, "adaptive")
    assert changed.training == config.training
    with pytest.raises(ConfigError, match=r"unknown key 'dvib\.gama_d'; did you mean 'dvib\.gamma_d'\?"):
        with_settings(config, {"dvib.gama_d": 1})
