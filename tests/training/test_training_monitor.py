from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers_training import make_config, planted_blocks
from training.checkpoint import load_checkpoint
from training.evaluation import METRICS
from training.trainer import Trainer

DATASET = planted_blocks()
PATIENCE = 3


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("cutoff", [1, 7, 60])
def test_any_metric_at_any_cut_off_decides_when_to_stop_and_what_is_kept(
    tmp_path: Path, metric: str, cutoff: int
) -> None:
    monitor = f"{metric}@{cutoff}"  # no cut-off that is computed anyway; 60 is the whole catalogue
    settings = ["training.epochs=25", f"training.patience={PATIENCE}", f"training.monitor={monitor}"]
    info = Trainer(make_config("none", *settings, "training.learning_rate=0.03"), DATASET, tmp_path).fit()
    values = [entry[f"valid/{monitor}"] for entry in info.history]
    best = values.index(max(values))  # the earliest of equals
    assert info.epoch == best + 1
    assert info.metrics["valid"][monitor] == values[best]
    assert monitor in info.metrics["test"]
    assert len(values) == min(25, best + 1 + PATIENCE)
    assert load_checkpoint(tmp_path).info == info


def test_the_metrics_do_not_all_choose_the_same_epoch(tmp_path: Path) -> None:
    chosen = set()
    for monitor in ("recall@1", "ndcg@50", "recall@20"):
        settings = ["training.epochs=12", "training.patience=12", f"training.monitor={monitor}"]
        config = make_config("none", *settings, "training.learning_rate=0.03")
        chosen.add(Trainer(config, DATASET, tmp_path / monitor).fit().epoch)
    assert len(chosen) > 1
