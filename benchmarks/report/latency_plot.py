"""Plots of the latency benchmark: the arms' distributions, and their ratios against the margin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from benchmarks.report.latency_document import Latency, LevelEntry
from benchmarks.report.plot import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PINK,
    SKY,
    VERMILLION,
    new_figure,
    save,
)

_COLUMNS = 3
_FAR = 1.5
"""A median more than so many times the baseline's, or less than the inverse, is named at the edge instead of drawn."""
_PROBABILITIES = np.concatenate([np.linspace(0.002, 0.9, 180), np.linspace(0.9, 0.995, 60)[1:]])
_SHOWN_TO, _MOST_MEDIANS = 0.95, 2.5
"""The time axis ends where the slowest arm that is drawn has this share of its calls behind it, or after so many times
its median, whichever is sooner: a long tail would push the medians together."""
Line = Literal["-", "--", "-.", ":"]
_STYLES: dict[str, list[tuple[str, Line]]] = {
    "baseline": [(BLACK, "-")],
    "same": [(GREY, "--")],
    "measured": [(BLUE, "-"), (SKY, "--"), (GREEN, "-.")],
    "control": [(ORANGE, "-"), (VERMILLION, "-")],
    "shown": [(PINK, ":")],
}
_MARKS = {
    "same": (BLACK, "s", "the baseline again:\nmust lie inside"),
    "measured": (BLUE, "o", "DVIB: what the run\nis about"),
    "control": (VERMILLION, "D", "slower on purpose:\nmust lie beyond"),
    "shown": (GREY, "v", "another seed:\nshown only"),
}


def plot_ecdf(document: Latency, stem: Path) -> list[Path]:
    """Draw the distribution of every arm's times, a panel per level.

    Args:
        document: The run.
        stem: The files' path without the ending.

    Returns:
        The files written.
    """
    rows, columns = _grid(document)
    figure, panels = new_figure(
        f"{_said(document)}\nTimes of all arms: where arms are as fast, their curves lie on each other",
        rows,
        columns,
        (4.3 * columns + 2.6, 3.1 * rows + 0.9),
    )
    styles = _styles(document)
    for axes, level in zip(panels, document.levels.values(), strict=False):
        _ecdf_panel(axes, document, level, styles)
    for axes in panels[len(document.levels) :]:
        axes.set_axis_off()
    lines = [
        Line2D([], [], color=colour, linestyle=line, linewidth=_width(name, document), label=name)
        for name, (colour, line) in styles.items()
        if name in _present(document)
    ]
    figure.legend(handles=lines, loc="outside right upper", fontsize=10)
    return save(figure, stem)


def _ecdf_panel(axes: Axes, document: Latency, level: LevelEntry, styles: dict[str, tuple[str, Line]]) -> None:
    base = level.microseconds[document.baseline].p50
    ends: list[tuple[float, float]] = []
    far = 0
    for name in document.order(level.microseconds):
        colour, line = styles[name]
        median = level.microseconds[name].p50
        if not base / _FAR <= median <= base * _FAR:
            beyond = f"{name}: median {median:,.0f} µs, × {median / base:.3g}"
            axes.text(
                0.98,
                0.04 + 0.09 * far,
                f"{beyond} →" if median > base else f"← {beyond}",
                transform=axes.transAxes,
                ha="right",
                color=colour,
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                zorder=5,
            )
            far += 1
            continue
        times = np.quantile(_pooled(level, name), _PROBABILITIES)
        axes.plot(times, _PROBABILITIES, color=colour, linestyle=line, linewidth=_width(name, document))
        tail = float(np.interp(_SHOWN_TO, _PROBABILITIES, times))
        ends.append((float(times[0]), min(tail, _MOST_MEDIANS * median)))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    axes.set_xlim(low - 0.03 * (high - low), high)
    axes.set_ylim(0, 1)
    axes.set_title(f"{level.description} (margin ±{level.margin:.0%})", fontsize=11)
    axes.set_xlabel("microseconds per call")
    axes.set_ylabel("share of the calls")
    axes.grid(visible=True, alpha=0.3)


def plot_forest(document: Latency, stem: Path) -> list[Path]:
    """Draw each arm's ratio to the baseline with its interval beside the shaded margin, a panel per level.

    Args:
        document: The run.
        stem: The files' path without the ending.

    Returns:
        The files written.
    """
    rows, columns = _grid(document)
    n_arms = len(_present(document)) - 1
    figure, panels = new_figure(
        f"{_said(document)}\nTime of each arm ÷ the baseline's, with its interval",
        rows,
        columns,
        (4.3 * columns + 3.4, (0.3 * n_arms + 1.1) * rows + 0.9),
    )
    limits = _limits(document)
    for position, (axes, name) in enumerate(zip(panels, document.levels, strict=False)):
        _forest_panel(axes, document, name, limits)
        if position % columns:
            axes.tick_params(labelleft=False)
    for axes in panels[len(document.levels) :]:
        axes.set_axis_off()
    roles = {document.arms[name].role for name in _present(document)}
    marks = [
        Line2D([], [], color=colour, marker=mark, label=label)
        for role, (colour, mark, label) in _MARKS.items()
        if role in roles
    ]
    band = Patch(color=PALE, label="margin: counts as no\ndifference")
    note = Line2D([], [], linestyle="", label="bold: not what it must be\n▸ ◂: beyond the axis")
    figure.legend(handles=[*marks, band, note], loc="outside right upper", fontsize=10, labelspacing=1)
    return save(figure, stem)


def _forest_panel(axes: Axes, document: Latency, name: str, limits: tuple[float, float]) -> None:
    level = document.levels[name]
    low, high = limits
    arms = [arm for arm in _present(document) if arm != document.baseline]
    axes.axvspan(1 - level.margin, 1 + level.margin, color=PALE, linewidth=0)
    axes.axvline(1, color=BLACK, linewidth=0.8)
    for row, arm in enumerate(arms):
        if arm not in level.findings:
            axes.text(1.02, row, "–", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
            continue
        comparison = document.comparison(name, arm)
        ratio = comparison.ratio
        colour, mark, _ = _MARKS[comparison.role]
        if low <= ratio.value <= high:
            axes.plot([ratio.low, ratio.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(ratio.value, row, marker=mark, color=colour, markersize=6)
        else:
            edge, arrow = (high, ">") if ratio.value > high else (low, "<")
            axes.plot(edge, row, marker=arrow, color=colour, markersize=10, clip_on=False, zorder=5)
        axes.text(
            1.035,
            row,
            f"{ratio.value:.3f}" if ratio.value < 2 else f"× {ratio.value:.1f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=colour,
            fontweight="normal" if comparison.as_wanted else "bold",
        )
    axes.set_xlim(low, high)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(f"{level.description} (±{level.margin:.0%})", fontsize=11)
    axes.grid(visible=True, axis="x", alpha=0.3)


def _said(document: Latency) -> str:
    """Return the verdict for a title."""
    arms, levels = " and ".join(document.measured), len(document.levels)
    return {
        "equivalent": f"Equivalent: {arms} inside the margin at {levels} of {levels} levels",
        "different": "Different: a DVIB arm lies outside the margin",
        "void": "Void: a control of this run failed, it says nothing about DVIB",
        "inconclusive": "Inconclusive: an interval of a DVIB arm crosses the margin's edge",
    }[document.verdict.word]


def _grid(document: Latency) -> tuple[int, int]:
    columns = min(_COLUMNS, len(document.levels))
    return -(-len(document.levels) // columns), columns


def _present(document: Latency) -> list[str]:
    """Return the arms that took part at any level."""
    return document.order(name for level in document.levels.values() for name in level.microseconds)


def _pooled(level: LevelEntry, arm: str) -> NDArray[np.float64]:
    return np.concatenate([np.array(values) for values in level.samples_microseconds[arm]])


def _styles(document: Latency) -> dict[str, tuple[str, Line]]:
    """Return a colour and a line style for each arm."""
    used = dict.fromkeys(_STYLES, 0)
    styles = {}
    for name, arm in document.arms.items():
        choices = _STYLES[arm.role]
        styles[name] = choices[used[arm.role] % len(choices)]
        used[arm.role] += 1
    return styles


def _width(arm: str, document: Latency) -> float:
    return 3.0 if arm == document.baseline else 1.6


def _limits(document: Latency) -> tuple[float, float]:
    """Return the ends of the axis of ratios: every margin, and each interval that is not far away."""
    widest = max(level.margin for level in document.levels.values())
    low, high = 1 - 2 * widest, 1 + 2 * widest
    for arm in document.arms:
        for comparison in document.comparisons(arm):
            ratio = comparison.ratio
            if 1 / _FAR <= ratio.value <= _FAR:
                low, high = min(low, ratio.low - 0.005), max(high, ratio.high + 0.005)
    return max(low, 1 / _FAR), min(high, _FAR)
