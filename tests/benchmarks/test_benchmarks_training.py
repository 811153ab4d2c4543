from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import training_profile
from benchmarks.shapes import SHAPES, synthetic_dataset
from benchmarks.training_speed import BLOCK, Arm, measure
from training.common.errors import ConfigError
from training.models import MODELS


@pytest.mark.parametrize("name", ["small", "baby"])
def test_a_synthetic_data_set_has_the_stated_counts(name: str) -> None:
    shape, dataset = SHAPES[name], synthetic_dataset(name)
    assert (dataset.n_users, dataset.n_items) == (shape.n_users, shape.n_items)
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": shape.n_train,
        "valid": shape.n_held_out,
        "test": shape.n_held_out,
    }
    assert dataset.modalities == shape.features
    cells = [part.users * dataset.n_items + part.items for part in dataset.splits.values()]
    assert sum(map(len, cells)) == len({int(cell) for part in cells for cell in part})


def test_a_synthetic_data_set_depends_on_its_seed_alone() -> None:
    assert synthetic_dataset("small").fingerprint() == synthetic_dataset("small").fingerprint()
    assert synthetic_dataset("small").fingerprint() != synthetic_dataset("small", seed=1).fingerprint()


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no shape 'babby'; did you mean 'baby'"):
        synthetic_dataset("babby")


def test_an_arm_makes_every_step_once_in_blocks() -> None:
    steps = 2 * BLOCK + 3
    done: list[tuple[int, int]] = []
    settled: list[int] = []

    def epoch(number: int) -> Iterator[None]:
        for step in range(steps):
            done.append((number, step))
            yield

    arm = Arm(epoch, steps, lambda: settled.append(len(done)))
    assert arm.blocks == 2
    for number in (1, 2):
        for block in range(arm.blocks):
            arm.run_block(number, block, keep=number > 1)
    assert done == [(number, step) for number in (1, 2) for step in range(steps)]
    assert settled == [BLOCK, steps, steps + BLOCK, 2 * steps]
    assert [len(times) for times in arm.times] == [1, 1]


def test_an_epoch_takes_the_sum_of_its_blocks_medians() -> None:
    arm = Arm(lambda _: iter(()), 2 * BLOCK, lambda: None)
    arm.times = [[1.0, 9.0, 2.0], [5.0, 4.0, 4.5]]
    assert arm.seconds_per_epoch() == 6.5


@pytest.mark.parametrize("model", ["vbpr", "bm3", "freedom"])
def test_all_arms_are_timed(model: str) -> None:
    epochs: list[int] = []
    result = measure("small", model, epochs=2, on_epoch=lambda: epochs.append(1))
    assert len(epochs) == 3
    seconds = result["seconds_per_epoch"]
    assert list(seconds) == ["none", "dvib", "reference_loop"]
    assert all(value > 0 for value in seconds.values())
    assert result["ratio_dvib"] == seconds["dvib"] / seconds["none"]
    assert result["ratio_reference"] == seconds["reference_loop"] / seconds["none"]
    for times in result["block_seconds"].values():
        assert [len(block) for block in times] == [2] * len(times)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in {"vbpr", "bm3", "freedom"}])
def test_the_other_models_have_no_reference_loop(model: str) -> None:
    result = measure("small", model, epochs=1)
    assert list(result["seconds_per_epoch"]) == ["none", "dvib"]
    assert result["ratio_reference"] is None


def test_a_profile_says_where_the_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_profile, "STEPS", 2)
    result = measure("small", "bm3", epochs=1, profiled=True)["profile"]
    for found in result.values():
        times = [row["milliseconds"] for row in found["operators"]]
        assert times == sorted(times, reverse=True)
        assert found["milliseconds"] == pytest.approx(sum(times))
    counts = {arm: {row["operator"]: row["calls"] for row in found["operators"]} for arm, found in result.items()}
    assert counts["none"]["aten::_fused_adam_"] == 1  # one optimiser step per step
    assert counts["dvib"]["aten::normal_"] > counts["none"].get("aten::normal_", 0)  # the perturbation's noise
    lines = list(training_profile.report(result))
    assert len(lines) <= training_profile.TOP + 3
    assert any(line.startswith("aten::mm") for line in lines)
