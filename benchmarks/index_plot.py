"""Recall against queries per second, one line per kind of index.

What is drawn is the multiple of flat's speed: both were timed in turns, while the speed of a busy machine drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.index_speed import Bar

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)
_BEST = 0.9995
_MARKS = "osD^vPX*"
_TITLES = {"near": "queries near items", "mixed": "averages of three centres"}


def _stretched(recall: float) -> float:
    """Return where a recall is drawn: every tenth part of the misses takes as much room."""
    return -float(np.log10(1 - min(recall, _BEST)))


def plot(runs: Sequence[dict[str, Any]], bar: Bar, stem: Path) -> list[Path]:
    """Draw a panel per catalogue and kind of query.

    Args:
        runs: From ``benchmarks.index_speed.measure``.
        bar: Drawn as the corner that is wanted.
        stem: The files' path without the ending.

    Returns:
        The PNG and the SVG written.
    """
    with mpl.rc_context({"svg.hashsalt": "dvib", "font.size": 10}):
        figure, panels = pyplot.subplots(
            len(runs), len(_TITLES), figsize=(15, 4.8 * len(runs)), squeeze=False, layout="constrained"
        )
        for run, row in zip(runs, panels, strict=True):
            for name, axes in zip(_TITLES, row, strict=True):
                _panel(axes, run, name, bar)
            row[-1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.14, 1))
        stem.parent.mkdir(parents=True, exist_ok=True)
        written = [stem.with_name(f"{stem.name}{ending}") for ending in (".png", ".svg")]
        figure.savefig(written[0], dpi=110)
        figure.savefig(written[1], metadata={"Date": None})
        pyplot.close(figure)
    return written


def _panel(axes: Axes, run: dict[str, Any], name: str, bar: Bar) -> None:
    for mark, result in zip(_MARKS, run["kinds"], strict=False):
        found = sorted((point[name]["recall"], point[name]["ratio"]) for point in result["points"])
        # Only what no other setting of the kind beats in both.
        front = [(r, q) for r, q in found if not any(r2 >= r and q2 > q for r2, q2 in found)]
        label = f"{result['kind']} ({result['factory']}, built in {result['build_seconds']:.0f} s)"
        axes.plot([_stretched(r) for r, _ in front], [q for _, q in front], marker=mark, label=label)
    flat = run["flat"]["qps"]
    axes.axhline(1, color="black", linewidth=1, label=f"flat: exact, {flat:.0f} queries/s")
    axes.axhline(bar.speedup, color="black", linewidth=1, linestyle="--", label=f"{bar.speedup:g} × flat")
    axes.axvline(_stretched(bar.recall), color="black", linewidth=1, linestyle=":", label=f"recall {bar.recall:g}")
    axes.set_yscale("log")
    axes.set_xticks([_stretched(tick) for tick in _TICKS], [f"{tick:g}" for tick in _TICKS])
    axes.set_xlim(0, _stretched(_BEST) + 0.1)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("× flat's queries per second, taken in turns")
    beside = axes.secondary_yaxis("right", functions=(lambda ratio: ratio * flat, lambda speed: speed / flat))
    beside.set_ylabel("queries per second, one thread, one query per call")
    axes.set_title(f"{run['items']:,} items of {run['generator']['dimension']} dimensions: {_TITLES[name]}")
    axes.grid(visible=True, which="major", alpha=0.3)
