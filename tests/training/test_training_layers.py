from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training.models.base import Batch
from training.models.layers import (
    batch_norm_of,
    bpr_loss,
    cosine_sum,
    linear,
    margin,
    summed_rows,
    take,
    unit_rows,
)

USERS = torch.tensor([0, 2, 2, 1, 0])
POSITIVES = torch.tensor([0, 3, 1, 1, 0])
NEGATIVES = torch.tensor([1, 0, 3, 3, 3])  # row 2 of the items is never named


def tables() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (3, 4))
    return users.requires_grad_(), items.requires_grad_()


def naive_margin(users: Tensor, items: Tensor) -> Tensor:
    return (users[USERS] * items[POSITIVES]).sum(1) - (users[USERS] * items[NEGATIVES]).sum(1)


def test_margin_equals_two_inner_products() -> None:
    users, items = tables()
    assert torch.allclose(margin(users, items, USERS, POSITIVES, NEGATIVES), naive_margin(users, items))


def test_margin_gradient() -> None:
    users, items = tables()
    assert torch.autograd.gradcheck(lambda u, i: margin(u, i, USERS, POSITIVES, NEGATIVES), (users, items))
    weights = torch.arange(5.0, dtype=torch.float64)
    ours = torch.autograd.grad((weights * margin(users, items, USERS, POSITIVES, NEGATIVES)).sum(), (users, items))
    naive = torch.autograd.grad((weights * naive_margin(users, items)).sum(), (users, items))
    assert all(torch.allclose(left, right) for left, right in zip(ours, naive, strict=True))
    assert bool((ours[1][2] == 0).all())


def test_bpr_loss_is_the_mean_log_sigmoid_and_finite_for_any_margin() -> None:
    margins = torch.tensor([-2.0, 0.0, 0.3, 5.0])
    assert bpr_loss(margins).item() == pytest.approx(-torch.sigmoid(margins).log().mean().item())
    extreme = torch.tensor([-1e6, 1e6], requires_grad=True)
    loss = bpr_loss(extreme)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(5e5)
    assert extreme.grad is not None
    assert extreme.grad.tolist() == [-0.5, 0]  # a lost triple is pulled up, a won one left alone


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_batch_norm_of_equals_the_norm_of_the_gathered_matrix(positions: list[int]) -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(len(positions)), requires_grad=True)
    chosen = torch.tensor(positions)
    ours, gathered = batch_norm_of(rows, chosen), torch.linalg.norm(rows[chosen])
    assert ours.item() == pytest.approx(gathered.item(), rel=1e-6)
    grads = [torch.autograd.grad(value, rows)[0] for value in (ours, gathered)]
    assert torch.allclose(grads[0], grads[1], rtol=1e-5, atol=1e-7)


def test_batch_norm_of_has_a_finite_gradient_at_zero() -> None:
    everything = torch.zeros(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(batch_norm_of(everything, torch.tensor([0, 0, 2])), everything)
    assert bool((grad == 0).all())
    one_row = torch.ones(3, 4)
    one_row[0] = 0
    one_row.requires_grad_()
    (grad,) = torch.autograd.grad(batch_norm_of(one_row, torch.tensor([0, 1])), one_row)
    assert bool(grad.isfinite().all())
    assert bool((grad[2] == 0).all())


def test_take() -> None:
    table = torch.randn(5, 2, requires_grad=True)
    assert take(table, None) is table
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(take(table, rows), table[rows])
    (grad,) = torch.autograd.grad(take(table, rows).sum(), table)
    assert grad[:, 0].tolist() == [1, 0, 0, 2, 0]


@pytest.mark.parametrize("all_items", [False, True])
def test_a_batch_names_the_same_triples_by_position(all_items: bool) -> None:
    users, positives, negatives = torch.tensor([7, 3, 7]), torch.tensor([9, 0, 2]), torch.tensor([2, 9, 9])
    batch = Batch.of(users, positives, negatives, all_items=all_items)
    assert batch.rows.users is not None
    assert batch.rows.users.tolist() == [3, 7]
    assert torch.equal(batch.rows.users[batch.users], users)
    if all_items:
        assert batch.rows.items is None
        rows = torch.arange(10)
    else:
        assert batch.rows.items is not None
        assert batch.rows.items.tolist() == [0, 2, 9]
        rows = batch.rows.items
    assert torch.equal(rows[batch.positives], positives)
    assert torch.equal(rows[batch.negatives], negatives)
    assert batch.user_weights().tolist() == pytest.approx([1 / 3, 2 / 3])


def test_summed_rows_equal_a_loop() -> None:
    draw = torch.Generator().manual_seed(3)
    table = torch.randn(5, 4, generator=draw)
    rows, into = torch.tensor([0, 4, 4, 2, 0]), torch.tensor([1, 1, 0, 3, 1])
    expected = torch.zeros(4, 4)
    for row, target in zip(rows.tolist(), into.tolist(), strict=True):
        expected[target] += table[row]
    assert torch.allclose(summed_rows(table, rows, into, 4), expected)


def test_the_cosine_sum_and_its_gradient_equal_torchs_own() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(6, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    unit = F.normalize(towards.detach(), dim=1)
    assert cosine_sum(x, unit).item() == pytest.approx(F.cosine_similarity(x, towards).sum().item())
    assert torch.autograd.gradcheck(lambda value: 3 * cosine_sum(value, towards.detach()), (x,))
    cosine_sum(x, towards).backward()  # type: ignore[no-untyped-call]
    assert towards.grad is None  # nothing learns through the targets
    zero = torch.zeros(2, 3, requires_grad=True)
    assert cosine_sum(zero, torch.ones(2, 3)).item() == 0


def test_unit_rows_have_length_one_and_zero_stays_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert unit_rows(x).tolist() == [pytest.approx([0.6, 0.8]), [0, 0], [0, -1]]


@pytest.mark.parametrize("xavier", [True, False])
def test_a_linear_layer_draws_from_its_generator_alone(xavier: bool) -> None:
    state = torch.get_rng_state()
    first, again = (linear(40, 30, torch.Generator().manual_seed(1), xavier=xavier) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert first.weight.shape == (30, 40)
    bound = 40**-0.5
    assert 0.9 * bound < float(first.bias.detach().abs().max()) <= bound
    deviation = (2 / 70) ** 0.5 if xavier else bound / 3**0.5
    assert float(first.weight.detach().std()) == pytest.approx(deviation, rel=0.1)
    assert linear(4, 3, torch.Generator(), xavier=xavier, bias=False).bias is None
