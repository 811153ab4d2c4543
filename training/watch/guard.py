"""Looks at every step's loss and gradient, and finds the first that is no finite number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.dvib.objective import StepLoss

STEPS_BETWEEN_LOOKS = 16
"""On an accelerator a look waits for everything that is under way; on a CPU it costs nothing, and every step is."""


@dataclass(frozen=True)
class Finding:
    """The first step that is not finite.

    Attributes:
        step: From 1.
        terms: What of the loss is not finite, the total among it; empty where the gradient alone is not.
        parameters: Whose gradient is not finite; looked for where the loss is.
    """

    step: int
    terms: tuple[str, ...]
    parameters: tuple[str, ...] = ()


STEPS_BETWEEN_NORMS = 8
"""A gradient of tables is as large as these: to look at it in every step takes up to a tenth of a step. A number that
is none shows in the next loss that reads it; the last step of an epoch is always looked at."""


class StepGuard:
    """Keeps the gradient norms of an epoch and looks for what is not finite.

    Args:
        names: Of the parameters.
        period: Steps between two looks.
        gradients: Whether a gradient has to be finite; under float16's scaling a step whose gradient is not is left
            out, and nothing is lost.
    """

    def __init__(self, names: Sequence[str], period: int, *, gradients: bool = True) -> None:
        self._names = names
        self._period = period
        self._gradients = gradients
        self._waiting: list[tuple[int, StepLoss, Tensor | None]] = []
        self._norms: list[Tensor] = []

    def saw(self, step: int, loss: StepLoss, norms: Tensor | None, *, counted: bool = True) -> Finding | None:
        """Take in a step, before it changes the parameters.

        Args:
            step: From 1.
            loss: Its loss.
            norms: The norm of every parameter's gradient, float32 [parameters], in the steps that know it.
            counted: Whether the epoch's mean and maximum are about this step.

        Returns:
            What was found, if now was the time to look.
        """
        if norms is not None and counted:
            self._norms.append(torch.linalg.vector_norm(norms))
        # Of the loss only numbers are kept: its graph may go.
        self._waiting.append((step, StepLoss(loss.total.detach(), loss.terms), norms))
        return self.look() if len(self._waiting) >= self._period else None

    def look(self) -> Finding | None:
        """Return the first of the waiting steps that is not finite, or None."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        looked_at = [loss.total for _, loss, _ in waiting]
        if self._gradients:
            looked_at += [norms.sum() for _, _, norms in waiting if norms is not None]
        if all(map(math.isfinite, torch.stack(looked_at).tolist())):
            return None
        for step, loss, norms in waiting:
            terms = {"total": loss.total, **loss.terms}
            if not math.isfinite(float(loss.total)):
                return Finding(step, tuple(name for name, value in terms.items() if not math.isfinite(float(value))))
            flags = torch.isfinite(norms).tolist() if norms is not None and self._gradients else []
            bad = tuple(name for name, good in zip(self._names, flags, strict=False) if not good)
            if bad:
                return Finding(step, (), bad)
        return None

    def norms(self) -> dict[str, float]:
        """Return the mean and the largest gradient norm of the steps that know theirs, by log name."""
        if not self._norms:
            return {}
        found = torch.stack(self._norms)
        found = found[torch.isfinite(found)]  # steps that float16's scaling leaves out
        if not len(found):
            return {}
        return {"gradient/mean": float(found.mean()), "gradient/max": float(found.max())}
