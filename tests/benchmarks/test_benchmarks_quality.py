from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality_report import table
from tests.benchmarks.helpers import Bench, read_json
from tests.helpers_training import planted_blocks, write_mmrec

QUICK = ("--set", "training.epochs=2", "--set", "training.batch_size=64")


def test_every_variant_has_as_many_trials() -> None:
    assert list(quality.GRIDS) == list(quality.VARIANTS)
    counts = {len({*settings}) for settings in quality.GRIDS.values()}
    assert counts == {12}


def test_a_tuned_comparison_from_the_command_line(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in quality.VARIANTS:
        monkeypatch.setitem(quality.GRIDS, variant, [(f"training.learning_rate={rate}",) for rate in (0.000001, 0.05)])
    write_mmrec(planted_blocks(), tmp_path)
    place = tmp_path / "out" / "quality.json"
    code = bench(
        "quality", "--dataset", "planted", "--data-dir", tmp_path, "--seeds", "2", "--tune", *QUICK, "--json", place
    )
    assert code == 0
    document = read_json(place)
    assert document["benchmark"] == "quality"
    assert sorted(document["rows"]) == ["adaptive", "constant", "none", "popularity"]
    for variant in quality.VARIANTS:
        assert document["tuning"][variant]["best"] == ["training.learning_rate=0.05"]
        assert [trial["epochs"] for trial in document["tuning"][variant]["trials"]] == [2, 2]
        assert len(document["runs"][variant]) == 2
        values = [run["test"]["recall@20"] for run in document["runs"][variant]]
        assert document["rows"][variant]["recall@20"]["mean"] == pytest.approx(sum(values) / 2)
    shown = capsys.readouterr()
    assert "none: of 2 trials on validation, chosen training.learning_rate=0.05" in shown.out
    assert "DVIB adaptive − plain, ndcg@10" in shown.out
    assert "±" in shown.out
    assert shown.err.count("trial ") == 6
    assert shown.err.count("run ") == 6


def test_the_table_compares_seed_by_seed() -> None:
    def runs(*values: float) -> list[dict[str, dict[str, float]]]:
        return [{"test": {"ndcg@10": value}} for value in values]

    row = {"ndcg@10": {"mean": 0.2, "sd": 0.01}}
    result = {
        "dataset": "toy",
        "preset": "paper",
        "seeds": [0, 1, 2],
        "rows": dict.fromkeys(("popularity", "none", "constant", "adaptive"), row),
        "runs": {"none": runs(0.1, 0.2, 0.3), "constant": runs(0.2, 0.1, 0.3), "adaptive": runs(0.2, 0.3, 0.4)},
    }
    lines = list(table(result))
    assert lines[-2].endswith("ndcg@10: +0.0000, better with 1 of 3 seeds")
    assert lines[-1].endswith("ndcg@10: +0.1000, better with 3 of 3 seeds")
    assert "popularity        0.2000 ± 0.0100" in lines


def test_an_unknown_key_is_named(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("quality", "--data-dir", tmp_path, "--set", "training.epoch=2") == 2
    assert "unknown key 'training.epoch'; did you mean 'training.epochs'?" in capsys.readouterr().err
