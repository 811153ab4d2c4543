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
        self._touched: dict[nn.Parameter, Tensor] = {}

    def settle(self) -> None:
        """Write sparse gradients into their buffers, so that every gradient is dense; ``step`` does it otherwise."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    self._touched[parameter] = gradient._indices()[0]
                    parameter.grad = self._scattered(parameter, gradient)

    def gradient_norms(self) -> Tensor:
        """Return the norm of every parameter's gradient, float32 [parameters], zero where there is none."""
        self.settle()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        found: dict[nn.Parameter, Tensor] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                found[parameter] = self._nonzero(parameter, parameter.grad)
        norms = dict(zip(found, torch._foreach_norm(list(found.values())), strict=True)) if found else {}
        return torch.stack([norms[p] if p in norms else p.new_zeros(()) for p in parameters])

    def _nonzero(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        rows = self._touched.get(parameter)
        # A sparse gradient's buffer is zero but for a few rows. An accelerator would have to wait for their number.
        return gradient if rows is None or rows.is_cuda else gradient[torch.unique(rows)]

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient by a scalar."""
        self.settle()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make one step; sparse gradients are gone afterwards."""
        self.settle()
        result = super().step(closure)
        for parameter, rows in self._touched.items():
            self._buffers[parameter].index_fill_(0, rows, 0.0)
            parameter.grad = None
        self._touched.clear()
        return result

    def _scattered(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        if parameter not in self._buffers:
            self._buffers[parameter] = torch.zeros_like(parameter)
        # Rows that were taken twice stand here twice, and add up.
        return self._buffers[parameter].index_add_(0, gradient._indices()[0], gradient._values())
