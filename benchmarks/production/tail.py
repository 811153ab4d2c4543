"""The bar of a tail: how much longer some requests take than in calm times, and whether those were enough to say so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.production.clients import Seen
from benchmarks.production.trends import tail_ratio
from benchmarks.production.verdict import Bar

LEAST = 500
"""Fewer requests say nothing about a p99."""
_APART_S = 1e6


def together(stretches: Sequence[Seen]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return when latencies began and how long they were, in seconds, float64 [n] each.

    No second has requests of two stretches.
    """
    begun = [seen.begun + number * _APART_S for number, seen in enumerate(stretches)]
    return np.concatenate(begun), np.concatenate([seen.latencies for seen in stretches])


def tail_bar(text: str, calm: Sequence[Seen], loaded: Sequence[Seen], limit: float, seed: int) -> Bar:
    """Return the bar of p99, loaded ÷ calm; without right replies of either it is missed.

    Args:
        text: What is compared.
        calm: Stretches of calm times.
        loaded: The others.
        limit: The ratio may not be more.
        seed: Draws the resamples.
    """
    before, after = together(calm), together(loaded)
    if not len(before[1]) or not len(after[1]):
        return Bar("tail", text, float("nan"), limit, "×")
    ratio = tail_ratio(before, after, np.random.default_rng(seed))
    return Bar("tail", text, ratio.value, limit, "×", f"[{ratio.low:.2f}, {ratio.high:.2f}]")


def too_few(calm: Sequence[Seen], name: str) -> list[str]:
    """Say whether calm times had too few right replies for a p99."""
    count = sum(len(seen.latencies) for seen in calm)
    return [f"p99 of {count} {name} requests says nothing, wanted {LEAST}; use more --seconds"] if count < LEAST else []
