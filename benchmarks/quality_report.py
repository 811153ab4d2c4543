"""The quality benchmark's figures as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.output import ProgressBar

LABELS = {"popularity": "popularity", "none": "plain", "constant": "DVIB constant", "adaptive": "DVIB adaptive"}
SHOWN = ("recall@20", "ndcg@10", "precision@10", "map@10", "hr@10")
_DECISIVE = "ndcg@10"


class Lines:
    """One line on stderr for every run that ends: a long comparison must not be silent.

    Args:
        bar: Where to.
    """

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar

    def trial(self, variant: str, settings: Sequence[str], value: float) -> None:
        """A trial of the tuning is over; its validation metric."""
        self._bar.line(f"trial {variant}: {' '.join(settings)}: validation {value:.4f}")
        self._bar.advance()

    def run(self, variant: str, seed: int, metrics: dict[str, float]) -> None:
        """A run of the comparison is over; its test metrics."""
        shown = " ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
        self._bar.line(f"run {variant}, seed {seed}: test {shown}")
        self._bar.advance()


def table(result: dict[str, Any]) -> Iterator[str]:
    """Yield the rows of ``benchmarks.quality.compare``, and each DVIB variant against the plain model."""
    shown = [name for name in SHOWN if name in result["rows"]["popularity"]]
    yield f"{result['dataset']}, preset {result['preset']}, test split, mean ± sd of {len(result['seeds'])} seeds"
    yield f"{'':<15}" + "".join(f"{name:>18}" for name in shown)
    for key, label in LABELS.items():
        cells = (result["rows"][key][name] for name in shown)
        yield f"{label:<15}" + "".join(f"   {cell['mean']:.4f} ± {cell['sd']:.4f}" for cell in cells)
    if _DECISIVE not in shown:
        return
    plain = [run["test"][_DECISIVE] for run in result["runs"]["none"]]
    for key in ("constant", "adaptive"):
        values = [run["test"][_DECISIVE] for run in result["runs"][key]]
        differences = [value - base for value, base in zip(values, plain, strict=True)]
        better = sum(difference > 0 for difference in differences)
        yield (
            f"{LABELS[key]} − plain, {_DECISIVE}: {sum(differences) / len(differences):+.4f}, "
            f"better with {better} of {len(differences)} seeds"
        )
