"""Early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Keeps the best value of the monitored metric and says when to stop.

    Attributes:
        patience: Evaluations in a row without an improvement after which to stop.
        decimals: Round before comparing; None compares exactly.
        best: Best value so far.
        best_epoch: Its epoch.
        waited: Evaluations since.
    """

    patience: int
    decimals: int | None = None
    best: float = -math.inf
    best_epoch: int = 0
    waited: int = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take in one evaluation; return whether it is the best so far."""
        if self.decimals is not None:
            value = round(value, self.decimals)
        if value > self.best:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether patience is used up."""
        return self.waited >= self.patience
