from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import matrix
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_training import planted_blocks, write_mmrec
from training.build import load_model
from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.evaluation import GroupedItems
from training.models.base import Recommender


@pytest.fixture
def planted(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options that name a small data set, and a place for figures."""
    write_mmrec(planted_blocks(), tmp_path)
    # Trained until the items of a user's training are its best, which an answer must leave out.
    learning = ("--set", "training.batch_size=64", "--set", "training.learning_rate=0.1", "--epochs", "5")
    return ("matrix", "--dataset", "planted", "--data-dir", tmp_path, *learning, "--json", tmp_path / "out.json")


def test_rows_go_all_the_way(
    bench: Bench, planted: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*planted, "--model", "vbpr", "--dvib", "none", "--dvib", "adaptive") == 0
    rows = read_json(tmp_path / "out.json")["rows"]
    assert [(row["model"], row["variant"]) for row in rows] == [
        ("vbpr", "none"),
        ("vbpr", "adaptive"),
    ]
    dataset = planted_blocks()
    user = int(dataset.splits["test"].users[0])
    seen = GroupedItems.of(dataset.train, dataset.n_users)
    own = set(seen.items[seen.offsets[user] : seen.offsets[user + 1]].tolist())
    for row in rows:
        assert row["error"] is None
        assert row["proofs"] == [4, 4]
        # What verification looks at, and with DVIB the plain bundle besides.
        assert row["checks"] == [10 + row["against_plain"]] * 2
        assert row["against_plain"] == (row["variant"] != "none")
        assert row["parity"].keys() == {"onnx", "onnx_unfolded", "torchscript", "program", "towers_index"}
        assert 0 <= row["parity_error"] == max(row["parity"].values()) < 1e-5
        assert (row["removed"]["parameters"] > 0) == (row["variant"] == "adaptive")
        assert row["bundle_bytes"] > 10_000
        assert row["answer"]["user"] == str(user)
        assert int(row["answer"]["item_id"]) not in own
        assert row["train_seconds"] > 0
        assert row["export_seconds"] > 0
        assert row["verify_seconds"] > 0
    document = read_json(tmp_path / "out.json")
    spent = sum(row["export_seconds"] + row["verify_seconds"] for row in rows)
    assert document["export_and_verify_seconds"] == pytest.approx(spent)
    shown = capsys.readouterr()
    assert "2 of 2 combinations went all the way on planted" in shown.out
    assert "4 of 4" in shown.out
    assert "export and verification of all: " in shown.out
    assert len(shown.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("place", "stage"),
    [("Trainer", "training"), ("build_bundle", "export"), ("verify_bundle", "verification"), ("ask", "request")],
)
def test_what_goes_wrong_stands_in_its_row_and_the_others_go_on(
    bench: Bench,
    planted: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    stage: str,
) -> None:
    real: Callable[..., object] = getattr(matrix, place)
    calls: list[int] = []

    def once(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("planted\nfault")
        return real(*arguments, **options) if stage == "training" else None

    monkeypatch.setattr(matrix, place, once)
    # Only the row that fails matters here: whatever comes after it is left out.
    if stage == "training":
        monkeypatch.setattr(matrix, "ask", lambda *_: {"user": "u", "item_id": "i", "score": 1.0})
    models = ("--model", "vbpr", "--dvib", "none") + (("--dvib", "constant") if stage == "training" else ())
    assert bench(*planted, *models) == 1
    rows = read_json(tmp_path / "out.json")["rows"]
    assert rows[0]["error"] == f"{stage}: ValueError: planted fault"
    if stage == "training":
        assert rows[1]["error"] is None
        assert not rows[1]["against_plain"]  # there is no plain bundle to compare with
    assert f"FAILED in {stage}: ValueError: planted fault" in capsys.readouterr().out


def test_a_wrong_answer_is_an_error(
    bench: Bench, planted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_items(checkpoint: Checkpoint) -> Recommender:
        model = load_model(checkpoint)
        users, items = model.vectors()
        monkeypatch.setattr(model, "vectors", lambda: (users, items.flip(0)))
        return model

    monkeypatch.setattr(matrix, "load_model", reversed_items)
    assert bench(*planted, "--model", "vbpr", "--dvib", "none") == 1
    assert read_json(tmp_path / "out.json")["rows"][0]["error"].startswith("request: WrongAnswerError: ")


def test_kept_runs_are_not_trained_again(
    bench: Bench, planted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "ask", lambda *_: {"user": "u", "item_id": "i", "score": 1.0})
    line = (*planted, "--model", "vbpr", "--dvib", "none", "--runs", tmp_path / "runs")
    assert bench(*line) == 0
    (first,) = read_json(tmp_path / "out.json")["rows"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["planted-vbpr-none-run"]
    monkeypatch.setattr(matrix, "Trainer", None)
    assert bench(*line) == 0
    (again,) = read_json(tmp_path / "out.json")["rows"]
    assert "train_seconds" in first
    assert "train_seconds" not in again
    assert again["parity"] == first["parity"]
    assert bench(*line, "--set", "model.dimension=12") == 1
    (other,) = read_json(tmp_path / "out.json")["rows"]
    assert other["error"].startswith("training: ConfigError: ")
    assert "other settings or data" in other["error"]


def test_every_variant_has_a_seed_of_its_own(
    bench: Bench, planted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def refuse(config: RunConfig, *_: object, **__: object) -> None:
        seeds.append(config.training.seed)
        raise ValueError("seen")

    monkeypatch.setattr(matrix, "Trainer", refuse)
    assert bench(*planted, "--model", "vbpr") == 1
    assert len(set(seeds)) == len(seeds) == 3
