from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from training.dvib.regulariser import eq13, kl_std


def case(rows: int = 30, width: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return hidden, 0.05 + 0.9 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prior", [0.5, 0.07, 2.0])
def test_eq13_is_the_kl_divergence_of_theorem_3_1(prior: float) -> None:
    hidden, phi = case()
    a = torch.tensor(prior, dtype=torch.float64)
    for phi_is, deviation in (("std", phi), ("var", phi.sqrt())):
        expected = kl_divergence(Normal(hidden, deviation), Normal(0.0, a.sqrt())).mean()
        assert eq13(hidden, phi, prior, phi_is=phi_is).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("prior", [0.5, 0.07, 2.0])
def test_kl_std_is_the_kl_divergence_with_standard_deviations(prior: float) -> None:
    hidden, phi = case()
    expected = kl_divergence(Normal(hidden, phi), Normal(0.0, torch.tensor(prior, dtype=torch.float64))).mean()
    assert kl_std(hidden, phi, prior).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_two_meanings_of_phi_differ_only_by_a_square() -> None:
    hidden, phi = case()
    assert eq13(hidden, phi, 0.5, phi_is="std").item() == pytest.approx(eq13(hidden, phi**2, 0.5, phi_is="var").item())


@pytest.mark.parametrize(
    ("scale", "sign"), [(0.1, -1), (math.sqrt(0.5) - 0.05, -1), (math.sqrt(0.5) + 0.05, 1), (0.99, 1)]
)
def test_eq13_draws_phi_to_the_prior_and_hidden_to_zero(scale: float, sign: int) -> None:
    hidden = torch.tensor([[1.0, -2.0, 0.0]], requires_grad=True)
    phi = torch.tensor([[scale]], requires_grad=True)
    eq13(hidden, phi, 0.5).backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert phi.grad is not None
    assert hidden.grad.sign().tolist() == [[1, -1, 0]]
    assert math.copysign(1, phi.grad.item()) == sign


def test_zero_hidden_at_the_prior_costs_nothing() -> None:
    hidden = torch.zeros(4, 3)
    assert eq13(hidden, torch.full((4, 1), math.sqrt(0.5)), 0.5).item() == pytest.approx(0, abs=1e-7)
    assert eq13(hidden, torch.full((4, 1), 0.5), 0.5, phi_is="var").item() == pytest.approx(0, abs=1e-7)
    assert kl_std(hidden, torch.full((4, 1), 0.5), 0.5).item() == pytest.approx(0, abs=1e-7)


def test_a_vanished_phi_leaves_everything_finite() -> None:
    for term in (eq13, kl_std):
        hidden, phi = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
        value = term(hidden, phi, 0.5)
        value.backward()  # type: ignore[no-untyped-call]
        assert math.isfinite(value.item())
        assert hidden.grad is not None
        assert bool(hidden.grad.isfinite().all())
        assert phi.grad is not None
        assert bool(phi.grad.isfinite().all())
