from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers_runs import EPOCHS_AT_ONCE, assert_same_run, train_unbroken, train_with_kills
from tests.helpers_training import make_config
from training.checkpoint import load_checkpoint

KILLS = 10


@pytest.mark.parametrize("model", ["vbpr", "freedom", "selfcf"])
def test_killed_at_ten_random_moments_and_resumed_a_run_ends_with_the_same_bits(tmp_path: Path, model: str) -> None:
    epochs = KILLS * EPOCHS_AT_ONCE + 4
    config = make_config(
        "adaptive", f"training.epochs={epochs}", f"training.patience={epochs}", "training.batch_size=32", model=model
    )
    seen = train_with_kills(config, tmp_path / "killed", KILLS, seed=len(model))
    assert len(seen) == KILLS
    assert 0 < sum(seen) < epochs  # kills came before, between and after epochs, none after the end
    train_unbroken(config, tmp_path / "through")
    assert_same_run(tmp_path / "killed", tmp_path / "through")
    assert len(load_checkpoint(tmp_path / "killed").info.history) == epochs
    leftovers = [path for path in (tmp_path / "killed").iterdir() if path.name.startswith(".") and path.is_dir()]
    assert leftovers == []
