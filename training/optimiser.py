"""Adam for tables of which a step touches few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RowAdam(torch.optim.Adam):
    """Adam (Kingma and Ba, ICLR 2015) that also takes sparse gradients, with the mathematics of dense ones.

    A row without a gradient still moves by its momentum, so every row of a table is updated in every step. What a
    sparse gradient saves is making, zeroing and adding up a dense one: its rows are written into a buffer that stays
    zero elsewhere, and zeroed again after the step.

    Args:
        parameters: What to update.
        lr: Step size.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr, fused=True)
        self._buffers: dict[nn.Parameter, Tensor] = {}

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make one step; sparse gradients are gone afterwards."""
        touched: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    touched.append((parameter, gradient._indices()[0]))
                    parameter.grad = self._scattered(parameter, gradient)
        result = super().step(closure)
        for parameter, rows in touched:
            self._buffers[parameter].index_fill_(0, rows, 0.0)
            parameter.grad = None
        return result

    def _scattered(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        if parameter not in self._buffers:
            self._buffers[parameter] = torch.zeros_like(parameter)
        # Rows that were taken twice stand here twice, and add up.
        return self._buffers[parameter].index_add_(0, gradient._indices()[0], gradient._values())
