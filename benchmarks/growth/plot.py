"""Latency and memory against the size of the catalogue, and latency against what else may grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.growth.measure import AXES

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

_MARKS = "osD^vPX*"


def plot(document: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw a measurement.

    Args:
        document: From ``benchmarks.growth.measure``.
        stem: The files' path without the ending.

    Returns:
        The PNG and the SVG written.
    """
    by_axis = {axis: [point for point in document["points"] if point["axis"] == axis] for axis in AXES}
    with mpl.rc_context({"svg.hashsalt": "dvib", "font.size": 10}):
        figure, panels = pyplot.subplot_mosaic(
            [["items", "users"], ["items", "k"], ["memory", "seen"]],
            figsize=(14, 11),
            width_ratios=(3, 2),
            layout="constrained",
        )
        _latency_by_size(panels["items"], by_axis["items"])
        _memory_by_size(panels["memory"], by_axis["items"])
        for axis in ("users", "k", "seen"):
            _small(panels[axis], by_axis[axis], AXES[axis])
        base = document["base"]
        figure.suptitle(
            f"one user per call, one thread, dimension {base['dimension']}; right: {base['items']:,} items, flat index"
        )
        stem.parent.mkdir(parents=True, exist_ok=True)
        written = [stem.with_name(f"{stem.name}{ending}") for ending in (".png", ".svg")]
        figure.savefig(written[0], dpi=110)
        figure.savefig(written[1], metadata={"Date": None})
        pyplot.close(figure)
    return written


def _by_index(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in found:
        groups.setdefault(point["factory"], []).append(point)
    return groups


def _latency_by_size(axes: Axes, found: Sequence[Mapping[str, Any]]) -> None:
    for mark, (factory, group) in zip(_MARKS, _by_index(found).items(), strict=False):
        sizes = [point["items"] for point in group]
        (line,) = axes.plot(sizes, [point["microseconds"]["p50"] / 1000 for point in group], marker=mark)
        line.set_label(f"{factory}, p50")
        axes.plot(
            sizes,
            [point["microseconds"]["p99"] / 1000 for point in group],
            marker=mark,
            color=line.get_color(),
            linestyle="--",
            alpha=0.6,
            label=f"{factory}, p99",
        )
    passed = [(point["items"], point["one_pass_microseconds"] / 1000) for point in found if point["factory"] == "Flat"]
    if passed:
        axes.plot(
            *zip(*passed, strict=True), color="black", linewidth=1, linestyle=":", label="one pass over the items"
        )
    _logarithmic(axes, "milliseconds per request")
    axes.set_title("latency against the size of the catalogue")
    axes.legend(fontsize=9)


def _memory_by_size(axes: Axes, found: Sequence[Mapping[str, Any]]) -> None:
    for mark, (factory, group) in zip(_MARKS, _by_index(found).items(), strict=False):
        sizes = [point["items"] for point in group]
        axes.plot(sizes, [point["memory_bytes"]["loaded"] / 1e6 for point in group], marker=mark, label=factory)
    _logarithmic(axes, "MB resident after loading")
    axes.set_title("memory of the process, libraries included")
    axes.legend(fontsize=9)


def _logarithmic(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(AXES["items"])
    axes.set_ylabel(label)
    axes.grid(visible=True, which="major", alpha=0.3)


def _small(axes: Axes, found: Sequence[Mapping[str, Any]], label: str) -> None:
    """Draw the places of an axis side by side: one of them is 0, which no logarithm has."""
    names = [f"{point['value']:,}" for point in found]
    for quantile, style in (("p50", "-"), ("p99", "--")):
        axes.plot(
            names,
            [point["microseconds"][quantile] / 1000 for point in found],
            marker="o",
            linestyle=style,
            label=quantile,
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 3, high * 3)  # a difference of some percent is not to look like a cliff
    axes.set_xlabel(label)
    axes.set_ylabel("milliseconds per request")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=9)
