"""δH: what the second pass adds to the hidden state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Noise = Literal["gaussian", "uniform", "dropout"]


def perturb(hidden: Tensor, scale: Tensor, generator: torch.Generator, noise: Noise = "gaussian") -> Tensor:
    """Return H + δH (paper, Eq. 7, 11 and 12; for the noises beside the normal it gives no formula).

    * ``gaussian``: δH = scale · ε with ε ~ N(0, I);
    * ``uniform``: δH = scale · ε with ε ~ U(-√3, √3), whose variance is 1 as well;
    * ``dropout``: δH = -H ∘ b with b ~ Bernoulli(scale), nothing rescaled. A draw has no derivative by its rate: φ
      learns by the straight-through estimator (Bengio et al., 2013), which takes ∂b/∂φ for 1.

    Args:
        hidden: float32 [rows, d].
        scale: σ as float32 [1, 1], or φ as float32 [rows, 1].
        generator: On the device of ``hidden``.
        noise: What is drawn.

    Returns:
        float32 [rows, d].
    """
    draw = torch.empty_like(hidden)
    if noise == "dropout":
        dropped = (draw.uniform_(generator=generator) < scale).to(hidden.dtype)
        if scale.requires_grad:
            dropped = dropped + (scale - scale.detach())
        return hidden - hidden * dropped
    if noise == "uniform":
        draw.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)
    else:
        draw.normal_(generator=generator)
    return torch.addcmul(hidden, scale, draw)


class NetPhi(nn.Sequential):
    """φ = Net_φ(H), one noise scale in (0, 1) per row (paper, Eq. 14; biases as in the authors' code).

    Shapes:
        input float32 [rows, width], output float32 [rows, 1], about 0.5 at the start.

    Args:
        width: Width of the hidden state.
        hidden_widths: Widths of the layers between; the authors use 32, 32.
        generator: For the initial weights (Xavier normal; biases zero).
    """

    def __init__(self, width: int, hidden_widths: Sequence[int], generator: torch.Generator) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([width, *hidden_widths, 1]):
            layer = nn.Linear(inputs, outputs)
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        layers[-1] = nn.Sigmoid()
        super().__init__(*layers)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return φ."""
        phi: Tensor = super().__call__(hidden)
        return phi
