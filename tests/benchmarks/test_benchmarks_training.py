from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loops import PlainVBPR, reference_for
from benchmarks.shapes import SHAPES, synthetic_dataset
from benchmarks.training_speed import BLOCK, Arm, measure
from tests.helpers_training import CPU, make_config, planted_blocks
from training.build import build_objective
from training.common.errors import ConfigError
from training.epoch import EpochRunner
from training.models.vbpr import VBPR


def make_runner() -> tuple[EpochRunner, PlainVBPR]:
    """Ours and the reference from the same initial values, in float64: rounding must not hide a difference."""
    dataset = planted_blocks()
    config = make_config("none", "model.regularisation=0.3")
    runner = EpochRunner(build_objective(config, dataset).double(), config, dataset, CPU)
    reference = reference_for(runner)
    assert reference is not None
    return runner, reference


def pairs(ours: VBPR, plain: PlainVBPR) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "users", ours.users, plain.users
    yield "items", ours.items, plain.items
    yield "weight", ours.weight, plain.projection.weight
    yield "bias", ours.bias, plain.projection.bias


def test_the_reference_loop_has_our_loss_and_gradients() -> None:
    runner, reference = make_runner()
    triple = next(runner.triples(1))
    ours = runner.objective.step(runner.objective.batch(*triple), torch.Generator()).total
    plain = reference.loss(*triple)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-7)
    ours.backward()  # type: ignore[no-untyped-call]
    plain.backward()  # type: ignore[no-untyped-call]
    for name, left, right in pairs(cast("VBPR", runner.objective.model), reference):
        assert left.grad is not None
        assert right.grad is not None
        assert right.grad.abs().max() > 0, name
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-5, atol=1e-9, msg=name)


def test_the_reference_loop_takes_the_same_course() -> None:
    runner, reference = make_runner()
    started = reference.users.detach().clone()
    for _ in zip(runner.steps_of(1), reference.steps_of(runner.triples(1)), strict=True):
        pass
    assert runner.steps > 3
    assert (reference.users - started).abs().max() > 0.01
    for name, left, right in pairs(cast("VBPR", runner.objective.model), reference):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8, msg=name)


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
    assert arm.blocks == 3
    for number in (1, 2):
        for block in range(arm.blocks):
            arm.run_block(number, block, keep=number > 1)
    assert done == [(number, step) for number in (1, 2) for step in range(steps)]
    assert settled == [BLOCK, 2 * BLOCK, steps, steps + BLOCK, steps + 2 * BLOCK, 2 * steps]
    assert [len(times) for times in arm.times] == [1, 1, 1]


def test_an_epoch_takes_the_sum_of_its_blocks_medians() -> None:
    arm = Arm(lambda _: iter(()), 2 * BLOCK, lambda: None)
    arm.times = [[1.0, 9.0, 2.0], [5.0, 4.0, 4.5]]
    assert arm.seconds_per_epoch() == 6.5


def test_all_arms_are_timed() -> None:
    epochs: list[int] = []
    result = measure("small", "vbpr", epochs=2, on_epoch=lambda: epochs.append(1))
    assert len(epochs) == 3
    seconds = result["seconds_per_epoch"]
    assert list(seconds) == ["none", "dvib", "reference_loop"]
    assert all(value > 0 for value in seconds.values())
    assert result["ratio_dvib"] == seconds["dvib"] / seconds["none"]
    assert result["ratio_reference"] == seconds["reference_loop"] / seconds["none"]
    for times in result["block_seconds"].values():
        assert [len(block) for block in times] == [2] * len(times)
