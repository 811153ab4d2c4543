from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.published import METRICS, beside_paper, published
from benchmarks.quality import VARIANTS
from tests.benchmarks.helpers import Bench
from tests.helpers_training import planted_blocks, write_mmrec


def test_the_table_is_complete() -> None:
    document = published()
    assert list(document) == ["baby", "sports", "clothing"]
    for models in document.values():
        assert list(models) == ["selfcf", "layergcn"]
        for variants in models.values():
            assert tuple(variants) == VARIANTS
            for metrics in variants.values():
                assert tuple(metrics) == METRICS
                assert metrics["recall@5"] > metrics["ndcg@5"] > metrics["map@5"] > metrics["precision@5"] > 0


def test_ratios_are_ours_over_theirs() -> None:
    ours = {name: {"mean": 2 * value} for name, value in published()["baby"]["selfcf"]["adaptive"].items()}
    rows = [
        {"label": "popularity", "metrics": ours},
        {"label": "ours", "model": "selfcf", "variant": "adaptive", "metrics": ours},
        {"label": "failed", "model": "selfcf", "variant": "none", "metrics": {}},
        {"label": "vbpr", "model": "vbpr", "variant": "none", "metrics": ours},
    ]
    lines = list(beside_paper("baby", rows))
    assert [line.split()[0] for line in lines if line.count("/") == 4] == ["ours"]
    assert "0.0714 / 0.0357 = 2.00" in lines[3]
    assert lines[-1] == "not in Table 5: vbpr"


def test_beside_the_paper_from_the_command_line(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mmrec(replace(planted_blocks(), name="baby"), tmp_path)
    options = ("--set", "training.epochs=1", "--seeds", "1", "--model", "layergcn", "--dvib", "none", "--device", "cpu")
    assert bench("quality", "--dataset", "baby", "--data-dir", tmp_path, "--paper", *options) == 0
    shown = capsys.readouterr().out
    assert "/ 0.0337 = " in shown
    assert "Table 5" in shown
