from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from training.dvib.divergence import jensen_shannon, kl_forward, kl_reverse, missing_entropy, ref_entropy

LOG_2 = math.log(2)


def logits(rows: int, classes: int, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference_js(clean: Tensor, perturbed: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) through torch's own KL, in float64. Its arguments are (log of the second, first)."""
    log_p, log_q = clean.double().log_softmax(-1), perturbed.double().log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - LOG_2
    parts = [F.kl_div(log_m, log_x, reduction="none", log_target=True).sum(-1) for log_x in (log_p, log_q)]
    return 0.5 * (parts[0] + parts[1])


def direct_ref_entropy(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Spec §4.1: ½ Σ_x Σ_j m_j [log m_j − logsoftmax(x)_j] for the *probabilities* x ∈ {p, q}."""
    p, q = clean.double().softmax(-1), perturbed.double().softmax(-1)
    m = (p + q) / 2
    return 0.5 * sum(
        ((m * (m.log() - x.log_softmax(-1))).sum(-1) for x in (p, q)), torch.zeros(len(p), dtype=torch.float64)
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e3])
def test_js_is_exactly_zero_for_equal_logits(scale: float) -> None:
    clean = logits(50, 300, scale)
    assert bool((jensen_shannon(clean, clean.clone()) == 0).all())


def test_js_of_shifted_logits_is_zero_up_to_rounding() -> None:
    clean = logits(50, 300)
    assert jensen_shannon(clean, clean + 3.0).abs().max() < 1e-6


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_js_equals_torch_kl_div(scale: float, noise: float) -> None:
    clean = logits(40, 200, scale)
    perturbed = clean + logits(40, 200, noise, seed=1)
    expected = reference_js(clean, perturbed)
    assert torch.allclose(jensen_shannon(clean, perturbed).double(), expected, rtol=1e-3, atol=2e-7)
    exact = jensen_shannon(clean.double(), perturbed.double())
    assert torch.allclose(exact, expected, rtol=1e-9, atol=1e-14)


def test_js_is_symmetric() -> None:
    clean, perturbed = logits(40, 100, 3.0), logits(40, 100, 3.0, seed=1)
    assert torch.allclose(jensen_shannon(clean, perturbed), jensen_shannon(perturbed, clean), rtol=1e-5, atol=1e-7)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=12))
def test_js_is_finite_and_between_zero_and_log_two(pairs: list[tuple[float, float]]) -> None:
    clean, perturbed = torch.tensor(pairs).T.unsqueeze(1).unbind(0)
    clean, perturbed = clean.requires_grad_(), perturbed.requires_grad_()
    value = jensen_shannon(clean, perturbed)
    assert -1e-6 <= value.item() <= LOG_2 + 1e-5
    assert value.item() == pytest.approx(reference_js(clean, perturbed).item(), abs=2e-5)
    value.sum().backward()  # type: ignore[no-untyped-call]
    for leaf in (clean, perturbed):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())


def test_js_reaches_log_two_for_disjoint_distributions() -> None:
    clean, perturbed = torch.tensor([[1e3, -1e3], [40.0, -40.0]]), torch.tensor([[-1e3, 1e3], [-40.0, 40.0]])
    assert jensen_shannon(clean, perturbed).tolist() == pytest.approx([LOG_2, LOG_2], abs=1e-5)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_js_gradient(scale: float) -> None:
    clean = logits(3, 6, scale, dtype=torch.float64).requires_grad_()
    perturbed = logits(3, 6, scale, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(jensen_shannon, (clean, perturbed))


def test_js_gradient_for_one_side_only_and_in_float32() -> None:
    clean, perturbed = logits(5, 30, 2.0), logits(5, 30, 2.0, seed=1).requires_grad_()
    (grad,) = torch.autograd.grad((jensen_shannon(clean, perturbed) * torch.arange(5.0)).sum(), perturbed)
    (expected,) = torch.autograd.grad((reference_js(clean, perturbed) * torch.arange(5.0)).sum(), perturbed)
    assert torch.allclose(grad, expected.float(), rtol=1e-4, atol=1e-6)


def test_js_gradient_is_zero_where_both_are_equal() -> None:
    clean = logits(5, 30).requires_grad_()
    (grad,) = torch.autograd.grad(jensen_shannon(clean, clean.detach().clone()).sum(), clean)
    assert bool((grad == 0).all())


def test_a_step_down_the_gradient_brings_the_distributions_together() -> None:
    clean, perturbed = logits(8, 20), logits(8, 20, seed=1).requires_grad_()
    before = jensen_shannon(clean, perturbed)
    (grad,) = torch.autograd.grad(before.sum(), perturbed)
    assert bool((jensen_shannon(clean, perturbed - grad) < before).all())


@pytest.mark.parametrize("classes", [2, 64, 3000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_ref_entropy_is_the_published_expression(classes: int, scale: float) -> None:
    clean = logits(20, classes, scale)
    perturbed = clean + logits(20, classes, 0.3, seed=1)
    expected = direct_ref_entropy(clean, perturbed)
    assert torch.allclose(ref_entropy(clean, perturbed).double(), expected, rtol=1e-5, atol=5e-6)
    exact = ref_entropy(clean.double(), perturbed.double())
    assert torch.allclose(exact, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("classes", "measured"), [(7050, 0.4989), (64, 0.4676)])
def test_ref_entropy_stays_large_without_any_noise(classes: int, measured: float) -> None:
    # The figures of spec §4.1, from its own NumPy check: scores of deviation 1, 256 rows.
    clean = logits(256, classes)
    value = ref_entropy(clean, clean).mean().item()
    assert value == pytest.approx(measured, abs=0.03)
    noisy = ref_entropy(clean, clean + logits(256, classes, 1e-3, seed=1)).mean().item()
    assert noisy == pytest.approx(value, rel=1e-3)  # and the perturbation hardly matters


def test_ref_entropy_is_finite_for_extreme_logits() -> None:
    clean = torch.tensor([[1e3, -1e3, 0.0]], requires_grad=True)
    value = ref_entropy(clean, -clean)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(value.item())
    assert clean.grad is not None
    assert bool(clean.grad.isfinite().all())


def test_ref_entropy_gradient() -> None:
    clean = logits(3, 5, dtype=torch.float64).requires_grad_()
    perturbed = logits(3, 5, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ref_entropy, (clean, perturbed))


def reference_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first ‖ second) of the softmax distributions, by torch's own KL in float64."""
    log_p, log_q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_both_kls_equal_torchs(scale: float, noise: float) -> None:
    clean = logits(40, 200, scale)
    perturbed = clean + logits(40, 200, noise, seed=1)
    forward, reverse = reference_kl(clean, perturbed), reference_kl(perturbed, clean)
    if noise >= 0.1:
        assert not torch.allclose(forward, reverse, rtol=1e-2)  # the two directions are told apart
    for found, expected in ((kl_forward, forward), (kl_reverse, reverse)):
        assert torch.allclose(found(clean, perturbed).double(), expected, rtol=2e-3, atol=2e-8)
        exact = found(clean.double(), perturbed.double())
        assert torch.allclose(exact, expected, rtol=1e-9, atol=1e-13)


def test_kl_by_hand() -> None:
    clean, perturbed = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert kl_forward(clean, perturbed).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_reverse(clean, perturbed).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 1e3])
def test_kl_is_exactly_zero_for_equal_logits(scale: float) -> None:
    clean = logits(50, 300, scale)
    assert bool((kl_forward(clean, clean.clone()) == 0).all())


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=12))
def test_kl_is_finite_and_not_negative(pairs: list[tuple[float, float]]) -> None:
    clean, perturbed = torch.tensor(pairs).T.unsqueeze(1).unbind(0)
    clean, perturbed = clean.requires_grad_(), perturbed.requires_grad_()
    value = kl_forward(clean, perturbed)
    assert value.item() >= -1e-6
    assert value.item() == pytest.approx(reference_kl(clean, perturbed).item(), rel=1e-4, abs=1e-4)
    value.sum().backward()  # type: ignore[no-untyped-call]
    for leaf in (clean, perturbed):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("divergence", [kl_forward, kl_reverse])
def test_kl_gradient(divergence: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
    clean = logits(3, 6, scale, dtype=torch.float64).requires_grad_()
    perturbed = logits(3, 6, scale, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(divergence, (clean, perturbed))


def test_missing_entropy_is_zero_for_equal_scores_and_log_n_for_a_single_choice() -> None:
    assert missing_entropy(torch.full((2, 50), 3.0)).tolist() == pytest.approx([0, 0], abs=1e-6)
    peaked = torch.zeros(1, 50)
    peaked[0, 7] = 1e4
    assert missing_entropy(peaked).item() == pytest.approx(math.log(50))


def test_missing_entropy_is_torchs_entropy_below_log_n() -> None:
    scores = logits(30, 400)
    expected = math.log(400) - torch.special.entr(scores.double().softmax(1)).sum(1)
    assert torch.allclose(missing_entropy(scores).double(), expected, rtol=1e-5, atol=1e-6)
    # It is what the authors' term amounts to without noise (spec §4.1: close to log n - H).
    assert torch.allclose(ref_entropy(scores, scores), missing_entropy(scores), rtol=0.02)
