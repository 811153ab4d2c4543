from __future__ import annotations

import pytest
import torch

from training.dvib.perturbation import NetPhi, Noise, perturb


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [1e-3, 0.5])
def test_moments_of_the_constant_perturbation(sigma: float) -> None:
    delta = perturb(torch.zeros(1000, 200), torch.full((1, 1), sigma), generator()) / sigma
    assert abs(delta.mean().item()) < 5 / 200_000**0.5
    assert delta.std().item() == pytest.approx(1, abs=0.01)
    assert (delta**3).mean().item() == pytest.approx(0, abs=0.03)  # skewness of a normal
    assert (delta**4).mean().item() == pytest.approx(3, abs=0.05)  # its kurtosis: not a uniform of equal variance
    neighbours = (delta[:, 1:] * delta[:, :-1]).mean().item()
    assert abs(neighbours) < 0.02  # every element is drawn for itself


@pytest.mark.parametrize("sigma", [1e-3, 0.5])
def test_the_uniform_perturbation_has_the_same_variance_and_is_bounded(sigma: float) -> None:
    delta = perturb(torch.zeros(1000, 200), torch.full((1, 1), sigma), generator(), "uniform") / sigma
    assert abs(delta.mean().item()) < 5 / 200_000**0.5
    assert delta.std().item() == pytest.approx(1, abs=0.01)
    assert (delta**4).mean().item() == pytest.approx(9 / 5, abs=0.02)  # kurtosis of a uniform
    assert delta.abs().max().item() == pytest.approx(3**0.5, abs=1e-3)
    assert delta.min().item() < -1.7


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_dropout_takes_entries_away_and_rescales_none(rate: float) -> None:
    hidden = torch.randn(500, 200, generator=generator(1))
    found = perturb(hidden, torch.full((1, 1), rate), generator(), "dropout")
    gone = found == 0
    assert torch.equal(found[~gone], hidden[~gone])  # δ is -H or 0, nothing between
    assert gone.float().mean().item() == pytest.approx(rate, abs=0.01)


def test_dropout_has_a_rate_for_each_row() -> None:
    phi = torch.tensor([[0.0], [0.3], [0.9]])
    gone = perturb(torch.ones(3, 50_000), phi, generator(), "dropout") == 0
    assert gone.float().mean(dim=1).tolist() == pytest.approx([0, 0.3, 0.9], abs=0.01)


def test_dropout_learns_its_rate_straight_through() -> None:
    hidden = torch.randn(3, 40, generator=generator(1)).requires_grad_()
    phi = torch.full((3, 1), 0.5, requires_grad=True)
    upstream = torch.randn(3, 40, generator=generator(2))
    found = perturb(hidden, phi, generator(), "dropout")
    assert torch.equal(found, perturb(hidden, phi.detach(), generator(), "dropout"))  # the value is a hard draw
    grads = torch.autograd.grad((found * upstream).sum(), (phi, hidden))
    # ∂b/∂φ = 1 for δ = -H ∘ b, whatever was drawn; H itself learns through what is left.
    assert torch.allclose(grads[0], -(hidden.detach() * upstream).sum(1, keepdim=True), atol=1e-5)
    assert torch.equal(grads[1], torch.where(found.detach() == 0, 0.0, upstream))


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "dropout"])
def test_every_noise_draws_from_its_generator_alone(noise: Noise) -> None:
    hidden, scale = torch.ones(6, 40), torch.full((1, 1), 0.5)
    before = torch.get_rng_state()
    first = perturb(hidden, scale, generator(1), noise)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(perturb(hidden, scale, generator(1), noise), first)
    assert not torch.equal(perturb(hidden, scale, generator(2), noise), first)
    assert bool((hidden == 1).all())


def test_each_row_has_its_own_scale() -> None:
    phi = torch.tensor([[0.0], [0.1], [0.9]])
    delta = perturb(torch.zeros(3, 50_000), phi, generator())
    assert delta.std(dim=1).tolist() == pytest.approx([0, 0.1, 0.9], abs=0.01)


def test_the_perturbation_does_not_depend_on_the_hidden_values() -> None:
    # δH is added and drawn for the shape of H alone; scaling with H would make it multiplicative noise.
    scale, hidden = torch.full((1, 1), 0.3), torch.arange(20.0).reshape(4, 5)
    delta = perturb(torch.zeros(4, 5), scale, generator())
    assert torch.allclose(perturb(hidden, scale, generator()), hidden + delta, atol=1e-5)
    assert torch.equal(perturb(hidden, torch.zeros(1, 1), generator()), hidden)


def test_the_clean_pass_keeps_its_hidden_state() -> None:
    hidden = torch.ones(4, 5)
    perturb(hidden, torch.ones(1, 1), generator())
    assert bool((hidden == 1).all())


def test_the_generator_alone_decides() -> None:
    hidden, scale = torch.zeros(6, 4), torch.ones(1, 1)
    first = perturb(hidden, scale, generator(1))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(perturb(hidden, scale, generator(1)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(perturb(hidden, scale, generator(2)), first)
    shared = generator(1)
    assert torch.equal(perturb(hidden, scale, shared), first)
    assert not torch.equal(perturb(hidden, scale, shared), first)  # the next draw is a new one


def test_phi_learns_through_the_noise() -> None:
    phi = torch.full((3, 1), 0.5, requires_grad=True)
    delta = perturb(torch.zeros(3, 4), phi, generator())
    delta.sum().backward()  # type: ignore[no-untyped-call]
    assert phi.grad is not None
    assert torch.allclose(phi.grad, (delta / phi).detach().sum(1, keepdim=True))


def test_the_hidden_state_learns_through_the_perturbed_pass() -> None:
    hidden = torch.zeros(3, 4, requires_grad=True)
    perturb(hidden, torch.ones(1, 1), generator()).sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert bool((hidden.grad == 1).all())


def test_net_phi_gives_one_scale_per_row() -> None:
    net = NetPhi(16, (32, 32), generator())
    hidden = 3 * torch.randn(500, 16, generator=generator(1))
    phi = net(hidden)
    assert phi.shape == (500, 1)
    assert bool(((phi > 0) & (phi < 1)).all())
    assert phi.std() > 0  # it does depend on H
    assert torch.equal(net(hidden[:7]), phi[:7]) or torch.allclose(net(hidden[:7]), phi[:7], atol=1e-6)


def test_net_phi_is_about_one_half_at_the_start() -> None:
    hidden = 0.1 * torch.randn(200, 16, generator=generator(1))
    means = [NetPhi(16, (32, 32), generator(seed))(hidden).mean().item() for seed in range(8)]
    assert means == pytest.approx([0.5] * 8, abs=0.1)
    assert NetPhi(16, (32, 32), generator())(torch.zeros(2, 16)).tolist() == [[0.5], [0.5]]


def test_net_phi_follows_equation_14() -> None:
    net = NetPhi(5, (4, 3), generator())
    w1, b1, w2, b2, w3, b3 = net.parameters()
    assert [tuple(w.shape) for w in (w1, w2, w3)] == [(4, 5), (3, 4), (1, 3)]
    hidden = torch.randn(6, 5, generator=generator(1))
    expected = torch.sigmoid(((hidden @ w1.T + b1).relu() @ w2.T + b2).relu() @ w3.T + b3)
    assert torch.allclose(net(hidden), expected)


def test_net_phi_starts_from_its_generator() -> None:
    nets = [NetPhi(5, (4,), generator(seed)) for seed in (0, 0, 1)]
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_net_phi_without_a_hidden_layer() -> None:
    assert NetPhi(5, (), generator())(torch.randn(2, 5)).shape == (2, 1)
