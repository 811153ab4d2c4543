"""L_r, the regulariser of the adaptive variant: the perturbed hidden state as a normal, drawn to a prior."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_SCALE = 1e-6


def eq13(hidden: Tensor, scale: Tensor, prior: float, *, phi_is: str = "std") -> Tensor:
    """Equation 13 with α0 = 1/(2a), β0 = ½ and HᵀH averaged over the dimensions.

    ``mean_rows[ mean_d(h²)/(2a) + ½ (v/a - log(v/a) - 1) ]``, where v = φ² (``phi_is='std'``) or v = φ (``'var'``, as
    printed). With v the variance this is KL(N(h, vI) ‖ N(0, aI)) per dimension (Theorem 3.1).

    Args:
        hidden: float32 [rows, d].
        scale: float32 [rows, 1], φ.
        prior: a, a variance.
        phi_is: What φ stands for.

    Returns:
        A scalar.
    """
    ratio = scale.clamp_min(_MIN_SCALE)
    ratio = (ratio.square() if phi_is == "std" else ratio) / prior
    return hidden.square().mean() / (2 * prior) + 0.5 * (ratio - torch.log(ratio) - 1).mean()


def kl_std(hidden: Tensor, scale: Tensor, prior: float) -> Tensor:
    """Mean over all elements of KL(N(h, φ) ‖ N(0, a)) with standard deviations φ and a, as the authors' code has it.

    Args:
        hidden: float32 [rows, d].
        scale: float32 [rows, 1], φ.
        prior: a, a standard deviation.

    Returns:
        A scalar.
    """
    deviation = scale.clamp_min(_MIN_SCALE)
    per_row = torch.log(prior / deviation) + deviation.square() / (2 * prior**2) - 0.5
    return per_row.mean() + hidden.square().mean() / (2 * prior**2)
