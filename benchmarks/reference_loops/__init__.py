"""Plain loops as these models are usually written: the other side of the speed comparisons.

They are our own code, with the same mathematics, batches and negatives as ours; what differs is how the work is done.
The usual way, taken over here: every item's features are projected for every batch, the propagation runs over the
whole graph for every batch as products with a COO matrix, feature tables are parameters with dense gradients, and
``torch.optim.Adam`` is used as it comes. Neither ``fused`` nor ``foreach`` is asked for: on a CPU PyTorch then updates
one tensor after another, operation by operation, on a GPU it groups them (``foreach``).
"""

from __future__ import annotations

from benchmarks.reference_loops.base import PlainLoop
from benchmarks.reference_loops.bm3 import PlainBM3
from benchmarks.reference_loops.freedom import PlainFREEDOM
from benchmarks.reference_loops.vbpr import PlainVBPR
from training.epoch import EpochRunner
from training.models.bm3 import BM3
from training.models.freedom import FREEDOM
from training.models.vbpr import VBPR

__all__ = ["PlainBM3", "PlainFREEDOM", "PlainLoop", "PlainVBPR", "reference_for"]


def reference_for(runner: EpochRunner) -> PlainLoop | None:
    """Return the plain loop for a runner's model, or None where there is none."""
    model, rate = runner.objective.model, runner.config.training.learning_rate
    if isinstance(model, VBPR):
        return PlainVBPR(model, rate)
    if isinstance(model, BM3):
        return PlainBM3(model, rate)
    if isinstance(model, FREEDOM):
        return PlainFREEDOM(model, rate)
    return None
