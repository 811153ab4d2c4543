"""Self-distillation terms between the clean and the perturbed pass, and the entropy of one pass.

Each takes logits, [rows, classes], and returns one value per row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _JensenShannon(torch.autograd.Function):
    """Fused forward and closed-form backward: a third of the passes over memory that autograd would make.

    With m = (p + q)/2 and the contrast w = (q - p)/(q + p), log(p/m) = log1p(-w) and log(q/m) = log1p(w). Errors of w
    enter the divergence squared: it is accurate also where p and q hardly differ, and zero where they are equal.
    """

    @staticmethod
    def forward(ctx: Any, clean: Tensor, perturbed: Tensor) -> Tensor:
        p, q = F.softmax(clean, dim=-1), F.softmax(perturbed, dim=-1)
        limits = torch.finfo(p.dtype)
        # Where both have underflowed to zero, the smallest normal number keeps the quotient zero.
        total = torch.add(p, q).clamp_min_(limits.tiny)
        # Where only one is left, the contrast stays just below one, so that zero times its logarithm is zero.
        most = 1.0 - limits.eps / 2
        contrast = torch.sub(q, p).div_(total).clamp_(-most, most)
        right = torch.log1p(contrast).mul_(q)
        left = contrast.neg_().log1p_().mul_(p)
        left_sum, right_sum = left.sum(-1, keepdim=True), right.sum(-1, keepdim=True)
        # dJS/dp = ½ log(p/m), then through the softmax: p (g - <p, g>).
        ctx.save_for_backward(left.addcmul_(p, left_sum, value=-1), right.addcmul_(q, right_sum, value=-1))
        return 0.5 * (left_sum + right_sum).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        scale = 0.5 * grad_outputs[0].unsqueeze(-1)
        return left * scale, right * scale


def jensen_shannon(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Jensen–Shannon divergence of two softmax distributions (paper, Eq. 10; natural logarithm).

    ``½ KL(p ‖ m) + ½ KL(q ‖ m)`` with ``m = (p + q)/2``: at least 0, at most log 2, 0 exactly for equal logits.

    Args:
        clean: float32 [rows, classes], logits of the clean pass.
        perturbed: float32 [rows, classes], logits of the perturbed pass.

    Returns:
        float32 [rows].
    """
    result: Tensor = _JensenShannon.apply(clean, perturbed)  # type: ignore[no-untyped-call]
    return result


class _KullbackLeibler(torch.autograd.Function):
    """Fused like the divergence above, and with errors that enter it squared.

    With r = log(q/p), KL(p ‖ q) = Σ p (exp(r) - 1 - r): the first two terms add up to zero, and none is negative.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
        p, q = log_p.exp(), log_q.exp()
        ratio = log_q.sub_(log_p)
        # Where q is much larger, exp(r) may overflow, and p exp(r) is q itself.
        terms = torch.where(ratio < 1, p * (torch.expm1(ratio.clamp_max(1)) - ratio), q - p - p * ratio)
        total = terms.sum(-1)
        # dKL/dp through the softmax: p (log(p/q) - KL); dKL/dq: q - p.
        ctx.save_for_backward(p * (-ratio - total.unsqueeze(-1)), q.sub_(p))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        scale = grad_outputs[0].unsqueeze(-1)
        return first * scale, second * scale


def kl_forward(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Kullback–Leibler divergence ``KL(p ‖ q)`` of the clean distribution p from the perturbed one q.

    Args:
        clean: float32 [rows, classes], logits of the clean pass.
        perturbed: float32 [rows, classes], logits of the perturbed pass.

    Returns:
        float32 [rows], at least 0, 0 exactly for equal logits.
    """
    result: Tensor = _KullbackLeibler.apply(clean, perturbed)  # type: ignore[no-untyped-call]
    return result


def kl_reverse(clean: Tensor, perturbed: Tensor) -> Tensor:
    """The other direction, ``KL(q ‖ p)``. Arguments and result as for ``kl_forward``."""
    return kl_forward(perturbed, clean)


def missing_entropy(logits: Tensor) -> Tensor:
    """What a softmax distribution lacks of the greatest entropy, ``log n - H(p)``: 0 for equal scores, at most log n.

    Args:
        logits: float32 [rows, n].

    Returns:
        float32 [rows].
    """
    log_p = F.log_softmax(logits, dim=-1)
    return math.log(logits.shape[-1]) + (log_p.exp() * log_p).sum(-1)


def ref_entropy(clean: Tensor, perturbed: Tensor) -> Tensor:
    """The term that the authors' released code computes in place of the Jensen–Shannon divergence.

    The probabilities go through a second softmax and the direction is reversed: ``½ Σ_x KL(m ‖ softmax(x))`` over
    ``x ∈ {p, q}``. That is close to ``log(classes) - entropy(m)``, large also for equal passes: it flattens the
    distribution and hardly compares the passes.

    Args:
        clean: float32 [rows, classes], logits of the clean pass.
        perturbed: float32 [rows, classes], logits of the perturbed pass.

    Returns:
        float32 [rows].
    """
    p, q = F.softmax(clean, dim=-1), F.softmax(perturbed, dim=-1)
    middle = 0.5 * (p + q)
    # Where a probability has underflowed to zero, log 0 would make the gradient NaN.
    negative_entropy = torch.special.xlogy(middle, middle.clamp_min(torch.finfo(middle.dtype).tiny)).sum(-1)
    cross = (torch.logsumexp(p, -1) + torch.logsumexp(q, -1)) - (middle * (p + q)).sum(-1)
    result: Tensor = negative_entropy + 0.5 * cross
    return result
