"""Noise and redundancy put into the data: bytes by seed, the numbers of the paper, and the whole way."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import foldnorm, norm

from export.build import build_bundle
from tests.helpers_training import make_config, planted_blocks, write_mmrec
from training.build import load_model, model_data
from training.checkpoint import load_checkpoint
from training.cli import app
from training.common import console
from training.common.errors import ConfigError
from training.data.dataset import Dataset
from training.data.items import ItemColumn, ItemTable
from training.data.load import load_dataset
from training.data.options import DataOptions
from training.data.transform_specs import FeatureNoise, TextRedundancy, VisualRedundancy, parse_transform
from training.data.transforms import with_redundant_texts, with_transformed_features
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate_model
from training.trainer import Trainer

DATASET = planted_blocks(n_items=400, n_users=20, modalities=("audio", "image", "text"))


def changed(texts: Sequence[str], seed: int = 0, dataset: Dataset = DATASET) -> Dataset:
    return with_transformed_features(dataset, texts, seed)


def digest(dataset: Dataset) -> dict[str, str]:
    return {name: hashlib.sha256(matrix.tobytes()).hexdigest() for name, matrix in dataset.features.items()}


@pytest.mark.parametrize(
    "texts", [["noise:0.05"], ["relative-noise:0.1:image"], ["visual-redundancy:6"], ["noise:1", "visual-redundancy"]]
)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(texts: list[str]) -> None:
    first, again, other = changed(texts), changed(texts), changed(texts, seed=1)
    assert digest(first) == digest(again)
    assert first.fingerprint() == again.fingerprint()
    assert len({DATASET.fingerprint(), first.fingerprint(), other.fingerprint()}) == 3
    assert digest(first)["image"] not in {digest(other)["image"], digest(DATASET)["image"]}
    assert first.notes["transforms"] == ", ".join(texts)
    assert first.notes["transform_seed"] == 0
    for split, interactions in DATASET.splits.items():
        assert np.array_equal(first.splits[split].items, interactions.items)


def test_no_transform_changes_nothing() -> None:
    assert changed([]) is DATASET
    assert DataOptions().transforms == ()


def test_what_is_drawn_for_a_modality_does_not_depend_on_the_others_or_on_the_strength() -> None:
    alone = replace(DATASET, features={"image": DATASET.features["image"]})
    assert np.array_equal(
        changed(["noise:0.3"], dataset=alone).features["image"], changed(["noise:0.3"]).features["image"]
    )
    strong, weak = (changed([f"noise:{chi}"]).features["text"] - DATASET.features["text"] for chi in (0.5, 0.1))
    assert np.allclose(strong, 5 * weak, atol=1e-6)
    twins = replace(DATASET, features=dict.fromkeys(("image", "text"), DATASET.features["text"]))
    image, text = (
        matrix - DATASET.features["text"] for matrix in changed(["noise:1"], dataset=twins).features.values()
    )
    assert abs(np.corrcoef(image.ravel(), text.ravel())[0, 1]) < 0.1


def test_noise_is_normal_with_deviation_chi_in_the_units_of_the_file() -> None:
    wide = replace(DATASET, features={"image": 40 * np.ones((400, 300), np.float32)})
    noise = changed(["noise:0.05"], dataset=wide).features["image"].astype(np.float64) - 40
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean()) < 0.001
    inside = [np.mean(np.abs(noise) < k * 0.05) for k in (0.5, 1, 2)]
    assert inside == pytest.approx([1 - 2 * norm.sf(k) for k in (0.5, 1, 2)], abs=0.01)
    only = changed(["noise:0.05:text"])
    assert [name for name in only.features if not np.array_equal(only.features[name], DATASET.features[name])] == [
        "text"
    ]


def test_relative_noise_counts_standard_deviations_of_the_modality() -> None:
    scaled = replace(DATASET, features={name: 30 * matrix + 7 for name, matrix in DATASET.features.items()})
    for name, matrix in scaled.features.items():
        noise = changed(["relative-noise:0.2"], dataset=scaled).features[name] - matrix
        spread = np.sqrt(np.mean((matrix - matrix.mean(axis=0)) ** 2))
        unit = changed(["noise:1"], dataset=scaled).features[name] - matrix
        assert np.allclose(noise, 0.2 * spread * unit, atol=1e-3)
    flat = replace(DATASET, features={"image": np.ones((400, 3), np.float32)})
    assert np.array_equal(changed(["relative-noise:5"], dataset=flat).features["image"], flat.features["image"])


def test_the_same_noise_twice_is_drawn_twice() -> None:
    once, twice = (changed(["noise:1"] * n).features["image"] - DATASET.features["image"] for n in (1, 2))
    second = twice - once
    assert abs(np.corrcoef(once.ravel(), second.ravel())[0, 1]) < 0.1
    assert second.std() == pytest.approx(1, rel=0.05)


def test_noise_on_top_of_what_the_data_have_is_drawn_anew() -> None:
    there = ("relative-noise:0.1", "noise:1", "text-redundancy")
    had = changed(there[:2])
    more = with_transformed_features(had, ["noise:1"], 0, after=there)
    assert digest(more) == digest(changed([*there, "noise:1"]))
    first, second = (new.features["image"] - old.features["image"] for old, new in ((DATASET, had), (had, more)))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    assert digest(with_transformed_features(DATASET, ["noise:1"], 0, after=["text-redundancy"])) == digest(
        changed(["noise:1"])
    )


def test_visual_redundancy_widens_as_the_paper_says() -> None:
    matrix = changed(["visual-redundancy"]).features["image"]
    width = DATASET.modalities["image"]
    assert matrix.shape == (400, width + 512 + 512)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix[:, :width], DATASET.features["image"])
    random, zeros = matrix[:, width : width + 512].astype(np.float64), matrix[:, width + 512 :]
    assert not zeros.any()
    absolute = foldnorm(1 / 3, scale=3)  # |N(1, 9)|, 9 the variance
    assert random.min() >= 0
    assert random.mean() == pytest.approx(absolute.mean(), rel=0.01)
    assert random.std() == pytest.approx(absolute.std(), rel=0.01)
    few = changed(["visual-redundancy:3:audio"])
    assert few.modalities == {**DATASET.modalities, "audio": DATASET.modalities["audio"] + 6}


# --- Texts ---


def table(n: int = 40) -> ItemTable:
    rows = range(n)
    return ItemTable(
        path=Path("items.csv"),
        ids=pl.Series([f"i{row}" for row in rows]),
        titles=pl.Series([f"Title {row}" for row in rows]),
        columns=(
            ItemColumn("title", pl.Series([f"Title {row}" for row in rows]), True, True, "|"),
            ItemColumn("genres", pl.Series(["War|Drama" if row % 2 else None for row in rows]), True, False, "|"),
        ),
    )


def test_half_of_the_texts_get_thirty_random_characters() -> None:
    items = table(41)
    found = with_redundant_texts(items, ["noise:1", "text-redundancy"], 0)
    assert found.columns[:2] == items.columns
    (added,) = (column for column in found.columns if column not in items.columns)
    strings = added.values.drop_nulls().to_list()
    assert len(strings) == 20
    assert len(set(strings)) == 20
    assert all(re.fullmatch("[a-zA-Z1-9]{30}", text) for text in strings)
    assert set("".join(strings)) == set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ123456789")
    assert (added.words, added.prose) == (True, True)
    assert found.categories is not None
    assert found.categories.name == "genres"
    again, other = (with_redundant_texts(items, ["text-redundancy"], seed).columns[-1] for seed in (0, 1))
    assert added.values.equals(again.values, null_equal=True)
    assert not added.values.equals(other.values, null_equal=True)
    assert with_redundant_texts(items, ["noise:1"], 0) is items
    all_short = with_redundant_texts(items, ["text-redundancy:1:5"], 0).columns[-1].values
    assert all_short.str.len_chars().to_list() == [5] * 41


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A rating log with an items table, from which features are derived."""
    place = tmp_path / "books"
    place.mkdir()
    draw = np.random.default_rng(0)
    words = np.array(
        [f"{head}{tail}" for head in ("sea", "war", "sun", "ice") for tail in ("song", "tale", "light", "")]
    )
    rows = [f"{user},{item}" for user in range(12) for item in draw.permutation(30)[:12]]
    (place / "ratings.csv").write_text("user_id,item_id\n" + "\n".join(rows) + "\n")
    lines = [f"{item},{' '.join(draw.choice(words, 3))},{'War' if item % 2 else 'Sea'}" for item in range(30)]
    (place / "items.csv").write_text("item_id,title,genres\n" + "\n".join(lines) + "\n")
    return tmp_path


def test_redundant_texts_reach_the_text_features_and_nothing_else(folder: Path) -> None:
    plain = load_dataset("books", folder)
    found, again = (load_dataset("books", folder, DataOptions(transforms=("text-redundancy",))) for _ in range(2))
    assert digest(found) == digest(again)
    assert set(plain.features) == {"attributes", "text"}
    assert np.array_equal(found.features["attributes"], plain.features["attributes"])
    assert found.features["text"].tobytes() != plain.features["text"].tobytes()
    assert found.titles == plain.titles
    assert found.categories is not None
    assert plain.categories is not None
    for name, array in plain.categories.to_arrays().items():
        assert np.array_equal(array, found.categories.to_arrays()[name])
    assert found.notes["transforms"] == "text-redundancy"
    options = DataOptions(transforms=("text-redundancy", "noise:0.1:text"))
    both = load_dataset("books", folder, options)
    assert np.std(both.features["text"] - found.features["text"]) == pytest.approx(0.1, rel=0.2)


def test_redundant_texts_are_refused_where_no_text_is_at_hand(tmp_path: Path) -> None:
    write_mmrec(planted_blocks(), tmp_path)
    with pytest.raises(ConfigError, match=r"text-redundancy.*planted.*features are read from files"):
        load_dataset("planted", tmp_path, DataOptions(transforms=("text-redundancy",)))


# --- How they are written ---


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("noise:0.05", FeatureNoise(0.05)),
        ("noise:1e-2:text", FeatureNoise(0.01, modality="text")),
        ("relative-noise:2", FeatureNoise(2.0, relative=True)),
        ("visual-redundancy", VisualRedundancy(512, "image")),
        ("visual-redundancy:7:audio", VisualRedundancy(7, "audio")),
        ("text-redundancy", TextRedundancy(0.5, 30)),
        ("text-redundancy:0.25:12", TextRedundancy(0.25, 12)),
    ],
)
def test_a_transform_is_read(text: str, meaning: object) -> None:
    assert parse_transform(text) == meaning


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nois:1", r"no transform 'nois'; did you mean 'noise'\?"),
        ("", "no transform ''; known: noise,"),
        ("noise", r"noise:CHI\[:MODALITY\] is wanted"),
        ("noise:", r"noise:CHI"),
        ("noise:-1", "at least 0 in place of '-1'"),
        ("noise:nan", "at least 0"),
        ("noise:inf", "at least 0"),
        ("noise:1:image:2", r"noise:CHI"),
        ("visual-redundancy:0", "whole number from 1 to 65536 in place of '0'"),
        ("visual-redundancy:1.5", "whole number"),
        ("text-redundancy:1.5", "at most 1"),
        ("text-redundancy:.5:99999999999999999999999", "whole number"),
    ],
)
def test_what_is_no_transform_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_transform(text)
    with pytest.raises(ConfigError, match=message):
        make_config("none", f"data.transforms={json.dumps([text])}")


def test_an_unknown_modality_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no features of the modality 'imag'; did you mean 'image'\?"):
        changed(["noise:1:imag"])


# --- The whole way ---


def test_a_run_with_transforms_trains_exports_and_says_so(tmp_path: Path) -> None:
    write_mmrec(planted_blocks(), tmp_path)
    config = make_config(
        "constant", 'data.transforms=["visual-redundancy:4", "noise:0.1"]', "data.transform_seed=3", "training.epochs=2"
    )
    data = load_dataset("planted", tmp_path, config.data)
    info = Trainer(config, data, tmp_path / "run", ks=(5,)).fit()
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.info.config.data.transforms == ("visual-redundancy:4", "noise:0.1")
    assert checkpoint.info.dataset.notes["transforms"] == "visual-redundancy:4, noise:0.1"
    assert checkpoint.info.dataset.modalities["image"] == planted_blocks().modalities["image"] + 8
    assert info.dataset.fingerprint == load_dataset("planted", tmp_path, config.data).fingerprint()
    assert info.dataset.fingerprint != load_dataset("planted", tmp_path).fingerprint()
    manifest, _ = build_bundle(checkpoint, tmp_path / "bundle")  # raises where a proof fails
    assert manifest.dataset.fingerprint == info.dataset.fingerprint


def test_a_trained_model_sees_noisy_features_scaled_as_those_it_was_trained_on(tmp_path: Path) -> None:
    data = planted_blocks()
    config = make_config("none", "training.epochs=1", "data.feature_scaling=global")
    Trainer(config, data, tmp_path, ks=(5,)).fit()
    checkpoint = load_checkpoint(tmp_path)
    noisy = changed(["noise:2"], dataset=checkpoint.dataset)
    model = load_model(checkpoint, seeing=noisy)
    clean = model_data(data, config.data).features
    deviation = {name: np.sqrt(np.mean((m - m.mean(axis=0)) ** 2)) for name, m in data.features.items()}
    expected = [
        clean[name] + torch.from_numpy((noisy.features[name] - matrix) / deviation[name])
        for name, matrix in data.features.items()
    ]
    assert torch.allclose(model.get_buffer("features"), torch.cat(expected, dim=1), atol=1e-4)
    for ours, stored in zip(model.parameters(), load_model(checkpoint).parameters(), strict=True):
        assert torch.equal(ours, stored)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run("dvib-train", lambda: app, [str(argument) for argument in arguments])
    code = caught.value.code
    return 0 if code is None else int(code)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up the process's logging; put it back."""
    monkeypatch.delenv("DVIB_DATA", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("undisturbed")
def test_the_commands_take_transforms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mmrec(planted_blocks(), tmp_path)
    run = tmp_path / "run"
    small = ["--set", "training.batch_size=64", "--set", "model.dimension=8", "--epochs", "1", "--device", "cpu"]
    fit = ["fit", "--dataset", "planted", "--data-dir", tmp_path, "--out", run, *small]
    assert command(*fit, "--transform", "noise:0.05", "--transform", "relative-noise:1:text") == 0
    assert load_checkpoint(run).info.config.data.transforms == ("noise:0.05", "relative-noise:1:text")
    assert command(*fit, "--resume", "--transform", "noise:0.06") == console.EXIT_BAD_INPUT
    capsys.readouterr()

    def evaluated(*more: object) -> dict[str, float]:
        target = tmp_path / "report.json"
        assert command("evaluate", run, "--json", target, "--device", "cpu", *more) == 0
        document = json.loads(target.read_text())
        assert document["transform_seed"] == (4 if 4 in more else 0)
        metrics: dict[str, float] = document["metrics"]
        return metrics

    noisy, again = (evaluated("--transform", "noise:9", "--transform-seed", 4) for _ in range(2))
    other = evaluated("--transform", "noise:9")
    assert noisy == again
    assert len({tuple(metrics.values()) for metrics in (evaluated(), noisy, other)}) == 3
    capsys.readouterr()
    for text, complaint in (("visual-redundancy", "takes noise alone"), ("noise", "is wanted")):
        assert command("evaluate", run, "--transform", text) == console.EXIT_BAD_INPUT
        assert re.fullmatch(rf"dvib-train: .*{complaint}.*\n", capsys.readouterr().err)


@pytest.mark.usefixtures("undisturbed")
def test_evaluate_adds_other_noise_than_the_model_was_trained_on(tmp_path: Path) -> None:
    write_mmrec(planted_blocks(), tmp_path)
    config = make_config("none", 'data.transforms=["noise:0.5"]', "training.epochs=1")
    Trainer(config, load_dataset("planted", tmp_path, config.data), tmp_path / "run").fit()
    report = tmp_path / "report.json"
    assert command("evaluate", tmp_path / "run", "--json", report, "--device", "cpu", "--transform", "noise:0.5") == 0
    checkpoint = load_checkpoint(tmp_path / "run")
    twice = DataOptions(transforms=("noise:0.5", "noise:0.5"))
    model = load_model(checkpoint, seeing=load_dataset("planted", tmp_path, twice))
    test = EvaluationSet.of(checkpoint.dataset, "test")
    expected = evaluate_model(model, test, checkpoint.dataset.n_items, DEFAULT_KS)
    assert json.loads(report.read_text())["metrics"] == expected


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(("model", "reads"), [("bm3", 0), ("selfcf", 0), ("layergcn", 0), ("vbpr", 1)])
def test_noise_that_a_ranking_cannot_notice_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, reads: int
) -> None:
    Trainer(make_config("none", "training.epochs=1", model=model), planted_blocks(), tmp_path).fit()
    assert command("evaluate", tmp_path, "--device", "cpu") == 0
    assert capsys.readouterr().err == ""
    assert command("evaluate", tmp_path, "--device", "cpu", "--transform", "noise:9") == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith(f"warning: --transform changes nothing that {model} ranks by") for line in told] == (
        [] if reads else [True]
    )
