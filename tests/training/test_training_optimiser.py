from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.models.layers import take
from training.optimiser import RowAdam

ROWS = 6
STEPS: list[list[int]] = [[0, 3], [3, 3, 1], [0], [5, 0, 5, 5], [2, 3], [1], [3], [0, 1, 2, 3]] * 5
"""Rows that each step takes: row 4 never, some seldom, some twice in a step."""


def start(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"table": (ROWS, 3), "other": (ROWS, 3), "weight": (3, 2)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(value) for name, value in start(seed).items()}


def loss(values: dict[str, nn.Parameter], rows: list[int], *, sparse: bool) -> Tensor:
    """Something with a different gradient each time; ``other`` takes other rows, and none in every third step."""
    taken = take(values["table"], torch.tensor(rows), sparse=sparse)
    total = (torch.tanh(taken @ values["weight"]) - 0.3).square().sum()
    if len(rows) != 1:
        total = total + take(values["other"], ROWS - 1 - torch.tensor(rows), sparse=sparse).cos().sum()
    return total


def run(
    optimiser: torch.optim.Optimizer, values: dict[str, nn.Parameter], steps: list[list[int]], *, sparse: bool
) -> None:
    for rows in steps:
        optimiser.zero_grad(set_to_none=True)
        loss(values, rows, sparse=sparse).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def assert_close(left: dict[str, nn.Parameter], right: dict[str, nn.Parameter]) -> None:
    for name, value in left.items():
        assert torch.allclose(value, right[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("steps", [1, 2, len(STEPS)])
def test_sparse_gradients_move_a_table_as_dense_ones_do(steps: int) -> None:
    ours, dense = parameters(), parameters()
    run(RowAdam(ours.values(), lr=0.05), ours, STEPS[:steps], sparse=True)
    # A step without any gradient of a table differs in the same way for both: torch's Adam then leaves it alone.
    run(torch.optim.Adam(dense.values(), lr=0.05), dense, STEPS[:steps], sparse=False)
    assert_close(ours, dense)
    assert torch.equal(ours["table"][4], start(0)["table"][4])  # never taken
    assert not torch.equal(ours["table"][3], start(0)["table"][3])


def test_a_row_without_gradient_still_moves_by_its_momentum() -> None:
    values = parameters()
    optimiser = RowAdam(values.values(), lr=0.05)
    run(optimiser, values, [[0, 3]], sparse=True)
    before = values["table"].detach().clone()
    run(optimiser, values, [[1, 2]], sparse=True)
    assert not bool((values["table"][0] == before[0]).any())


def test_one_table_may_get_dense_and_sparse_gradients_in_turn() -> None:
    ours, dense = parameters(), parameters()
    optimiser, reference = RowAdam(ours.values(), lr=0.05), torch.optim.Adam(dense.values(), lr=0.05)
    for number, rows in enumerate(STEPS):
        run(optimiser, ours, [rows], sparse=number % 3 != 0)
        run(reference, dense, [rows], sparse=False)
    assert_close(ours, dense)


def test_a_sparse_gradient_is_gone_after_the_step() -> None:
    values = parameters()
    optimiser = RowAdam(values.values(), lr=0.05)
    loss(values, [0, 3], sparse=True).backward()  # type: ignore[no-untyped-call]
    before = {name: None if value.grad is None else value.grad.is_sparse for name, value in values.items()}
    assert before == {"table": True, "other": True, "weight": False}
    optimiser.step()
    assert [name for name, value in values.items() if value.grad is not None] == ["weight"]


def test_the_state_survives_a_round_trip() -> None:
    whole, first = parameters(), parameters()
    optimiser = RowAdam(whole.values(), lr=0.05)
    run(optimiser, whole, STEPS, sparse=True)
    early = RowAdam(first.values(), lr=0.05)
    run(early, first, STEPS[:13], sparse=True)
    second = parameters(seed=1)
    with torch.no_grad():
        for name, value in first.items():
            second[name].copy_(value)
    late = RowAdam(second.values(), lr=0.05)
    late.load_state_dict(early.state_dict())
    run(late, second, STEPS[13:], sparse=True)
    for name, value in whole.items():
        assert torch.equal(value, second[name]), name


def test_the_state_is_that_of_adam() -> None:
    ours, dense = parameters(), parameters()
    optimiser, reference = RowAdam(ours.values(), lr=0.05), torch.optim.Adam(dense.values(), lr=0.05)
    run(optimiser, ours, STEPS, sparse=True)
    run(reference, dense, STEPS, sparse=False)
    left, right = optimiser.state_dict()["state"], reference.state_dict()["state"]
    assert left.keys() == right.keys()
    for number, state in left.items():
        assert state.keys() == right[number].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in state.items():
            assert torch.allclose(value, right[number][name], rtol=1e-4, atol=1e-6), (number, name)
