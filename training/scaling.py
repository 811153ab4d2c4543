"""How features are scaled between a data set, which keeps them raw, and a model.

    none            x
    global          (x - mean of its column) / standard deviation of all centred entries of the modality
    per_dimension   (x - mean of its column) / standard deviation of its column; constant columns become 0

Means and deviations are taken over all items of the catalogue: features are known before any interaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.common.choices import FeatureScaling
from training.data.dataset import Dataset
from training.data.options import DataOptions

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Scaling:
    """``(x - offset) · factor``, in float32 wherever it is computed, so that an exported graph computes the same.

    Attributes:
        offset: float32 [F].
        factor: float32 [F], 0 for columns that carry nothing.
    """

    offset: NDArray[np.float32]
    factor: NDArray[np.float32]

    @classmethod
    def of(cls, matrix: NDArray[np.float32], kind: FeatureScaling) -> Self:
        """Measure a feature matrix [I, F]; ``kind`` is ``global`` or ``per_dimension``."""
        mean = matrix.mean(axis=0, dtype=np.float64)
        # In blocks of rows: a centred float64 copy of wide features would take gigabytes.
        squares = np.zeros_like(mean)
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            squares += np.square(matrix[start : start + _ROWS_AT_ONCE] - mean).sum(axis=0)
        # Exactly 0 for a constant column: the sum of equal float32 numbers is exact in float64.
        variance = squares / len(matrix)
        if kind == "global":
            variance = np.full_like(variance, variance.mean())
        factor = np.zeros_like(variance)
        np.divide(1.0, np.sqrt(variance), out=factor, where=variance > 0)
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def apply(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a scaled copy of a feature matrix [n, F]."""
        scaled = matrix - self.offset
        scaled *= self.factor
        return scaled


def scalings_of(dataset: Dataset, options: DataOptions) -> dict[str, Scaling]:
    """Return modality name → scaling; empty where the features stay as they are."""
    if options.feature_scaling == "none":
        return {}
    return {name: Scaling.of(matrix, options.feature_scaling) for name, matrix in dataset.features.items()}
