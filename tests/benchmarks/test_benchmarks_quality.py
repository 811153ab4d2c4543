from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality
from benchmarks.grids import grids, trials
from benchmarks.ledger import Ledger, Record
from benchmarks.quality_report import make_rows, table
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_training import planted_blocks, write_mmrec
from training.common.errors import DvibError
from training.config import RunConfig, known_keys
from training.epoch import DivergedError, EpochRunner
from training.models import MODELS

QUICK = ("--set", "training.epochs=2", "--set", "training.batch_size=64")
SMALL = ("--metrics", "recall@20,ndcg@10")


@pytest.fixture
def planted(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options that name a small data set."""
    write_mmrec(planted_blocks(), tmp_path)
    return ("quality", "--dataset", "planted", "--data-dir", tmp_path, *QUICK, *SMALL, "--device", "cpu")


def test_every_variant_of_a_model_has_as_many_trials() -> None:
    assert grids().keys() <= MODELS.keys()
    for model in grids():
        found = [trials(model, variant) for variant in quality.VARIANTS]
        assert len({len(set(settings)) for settings in found}) == 1
        keys = {text.partition("=")[0] for settings in found for trial in settings for text in trial}
        assert keys <= set(known_keys(model))
    assert len(trials("vbpr", "none")) == 12


def test_all_models_stand_in_one_table(
    bench: Bench, planted: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out.json"
    assert bench(*planted, "--model", "all", "--dvib", "none", "--seeds", "1", "--json", place) == 0
    document = read_json(place)
    labels = [row["label"] for row in document["rows"]]
    assert labels[0] == "popularity"
    assert labels[1].startswith("item-kNN, k ")
    wanted = [(model, "none") for model in MODELS]
    assert [(row["model"], row["variant"]) for row in document["rows"][2:]] == wanted
    shown = capsys.readouterr()
    assert all(any(line.startswith(label) for line in shown.out.splitlines()) for label in labels)
    assert "ndcg@10" in shown.out
    assert "recall@50" not in shown.out
    assert len(shown.err.splitlines()) == len(wanted)


def test_means_are_over_seeds_and_nothing_is_run_twice(
    bench: Bench,
    planted: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "out.json"
    assert bench(*planted, "--dvib", "none", "--seeds", "1", "--json", place) == 0
    fitted: list[int] = []
    fit = quality.fit

    def counted(config: RunConfig, *rest: Any) -> Record:
        fitted.append(config.training.seed)
        return fit(config, *rest)

    monkeypatch.setattr(quality, "fit", counted)
    options = (*planted, "--dvib", "none", "--dvib", "constant", "--seeds", "2", "--json", place)
    assert bench(*options) == 0
    assert fitted == [1, 0, 1]
    rows = {row["label"]: row for row in read_json(place)["rows"]}
    runs = [run for run in read_json(place)["runs"] if run.get("variant") == "constant"]
    values = [run["test"]["recall@20"] for run in runs]
    assert rows["vbpr + DVIB constant"]["metrics"]["recall@20"]["mean"] == pytest.approx(sum(values) / 2)
    assert rows["vbpr + DVIB constant"]["versus_plain"]["recall@20"]["pairs"] == 2
    fitted.clear()
    assert bench(*options) == 0
    assert fitted == []
    assert "as in the file" in capsys.readouterr().err
    # Another setting is another run.
    assert bench(*planted, "--dvib", "none", "--seeds", "1", "--set", "model.dimension=4", "--json", place) == 0
    assert fitted == [0]


def test_a_kill_loses_only_the_run_that_it_meets(
    bench: Bench, planted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out.json"
    fit, left = quality.fit, iter(range(2))

    def killed(*arguments: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "fit", killed)
    assert bench(*planted, "--seeds", "1", "--json", place) == 130
    assert [run["variant"] for run in read_json(place)["runs"] if "variant" in run] == ["none", "constant"]


def test_a_run_that_fails_is_said_and_the_others_go_on(
    bench: Bench,
    planted: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = EpochRunner.run

    def diverging(self: EpochRunner, *arguments: object) -> dict[str, float]:
        if self.config.dvib.variant == "constant":
            raise DivergedError("planted")
        return run(self, *arguments)  # type: ignore[arg-type]

    place = tmp_path / "out.json"
    monkeypatch.setattr(EpochRunner, "run", diverging)
    assert bench(*planted, "--seeds", "1", "--json", place) == 1
    rows = {row["label"]: row for row in read_json(place)["rows"]}
    assert rows["vbpr + DVIB constant"]["failed"] == ["DivergedError: planted"]
    assert rows["vbpr + DVIB adaptive"]["runs"] == 1
    assert "FAILED: DivergedError: planted" in capsys.readouterr().out
    # It is no result: the next time it is tried again.
    monkeypatch.undo()
    assert bench(*planted, "--seeds", "1", "--json", place) == 0


def test_a_tuned_comparison(
    bench: Bench,
    planted: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = [(f"training.learning_rate={rate}",) for rate in (0.000001, 0.05)]
    for module in ("benchmarks.quality", "benchmarks.grids"):
        monkeypatch.setattr(f"{module}.trials", lambda *_: rates)
    place = tmp_path / "out.json"
    assert bench(*planted, "--seeds", "1", "--tune", "--json", place) == 0
    document = read_json(place)
    for entry in document["tuning"].values():
        assert entry["best"] == ["training.learning_rate=0.05"]
        assert len(entry["trials"]) == 2
    used = [run["config"]["training"]["learning_rate"] for run in document["runs"] if run.get("seed") == 0]
    assert used == [0.05] * 3
    shown = capsys.readouterr()
    assert "vbpr: of 2 trials on validation, chosen training.learning_rate=0.05" in shown.out
    assert shown.err.count("trial ") == 6


def test_the_table_compares_seed_by_seed() -> None:
    lines = [quality.Combination("toy", "none"), quality.Combination("toy", "adaptive")]
    runs: dict[str, list[Record]] = {
        "toy": [{"test": {"ndcg@10": value}, "epoch": 1, "seconds": 1.0} for value in (0.1, 0.2, 0.3)],
        "toy + DVIB adaptive": [
            {"test": {"ndcg@10": 0.2}, "epoch": 1, "seconds": 1.0},
            {"error": "DivergedError: x"},
            {"test": {"ndcg@10": 0.25}, "epoch": 1, "seconds": 1.0},
        ],
    }
    shown = list(table("title", make_rows(lines, runs, {"popularity": {"ndcg@10": 0.05}}), ["ndcg@10"]))
    assert shown[2].split() == ["popularity", "0.0500"]
    assert shown[3].split() == ["toy", "0.2000", "±", "0.1000"]
    assert "0.2250 ± 0.0354" in shown[4]
    assert "+0.0250, better with 1 of 2   FAILED: DivergedError: x" in shown[4]


@pytest.mark.parametrize("content", ["[]", "{", '{"benchmark": "training"}', '{"benchmark": "quality", "runs": {}}'])
def test_another_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    place = tmp_path / "x.json"
    place.write_text(content)
    with pytest.raises(DvibError, match=r"name another file, or move this one away") as raised:
        Ledger(place, "quality")
    assert "\n" not in str(raised.value)
    assert place.read_text() == content


def test_a_ledger_gives_back_what_it_was_given(tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    Ledger(place, "quality").add({"config": {"layers": (1, 2)}, "value": 0.1})
    again = Ledger(place, "quality")
    assert again.find({"config": {"layers": (1, 2)}}) == {"config": {"layers": [1, 2]}, "value": 0.1}
    assert again.find({"config": {"layers": (1, 3)}}) is None
    assert again.find({"nothing": None}) is None
    assert json.loads(place.read_text())["benchmark"] == "quality"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "training.epoch=2"), "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        (("--model", "vbrp"), "no model 'vbrp'; did you mean 'vbpr'?"),
        (("--dvib", "adaptiv"), "no variant 'adaptiv'; did you mean 'adaptive'?"),
        (("--metrics", "recal@20"), "no metric 'recal@20'; did you mean 'recall@20'?"),
        (("--paper",), "Table 5 has no data set 'ml-100k'; known: baby, clothing, sports"),
    ],
)
def test_bad_input_is_one_line(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert bench("quality", "--data-dir", tmp_path, *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
