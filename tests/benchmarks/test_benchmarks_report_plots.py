from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.report import latency_plot
from benchmarks.report import plot as report_plot
from benchmarks.report.latency_document import Latency
from benchmarks.report.parts_documents import Load, Peers, Stages
from tests.benchmarks.helpers_report import EQUAL, FAR, latency, load, peers, stages


def points_of(line: Line2D) -> tuple[list[float], list[float]]:
    """Return where a line goes: x, y."""
    x, y = (np.asarray(data, dtype=np.float64).tolist() for data in line.get_data())
    return x, y


def drawn_by(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, plot: Callable[[Any, Path], list[Path]], document: Any
) -> Figure:
    """Return the figure itself, before it becomes a file."""
    figures: list[Figure] = []

    def keep(figure: Figure, stem: Path) -> list[Path]:
        figures.append(figure)
        return []

    monkeypatch.setattr(module, "save", keep)
    plot(document, Path("unused"))
    pyplot.close(figures[0])
    return figures[0]


def test_the_ratios_are_where_the_forest_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Latency.model_validate(latency(EQUAL | FAR))
    figure = drawn_by(monkeypatch, latency_plot, latency_plot.plot_forest, document)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [*EQUAL, *FAR]
    for axes, level in zip(figure.axes, document.levels.values(), strict=False):
        low, high = axes.get_xlim()
        assert low < 1 - level.margin < 1 + level.margin < high
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        np.testing.assert_allclose((band.x0, band.x1), (1 - level.margin, 1 + level.margin))
        lines = {(y[0], len(x)): x for x, y in map(points_of, axes.lines)}
        for row, (arm, entry) in enumerate(level.ratio_of_medians.items()):
            if arm in FAR:
                assert lines[row, 1] == [high]
            else:
                assert lines[row, 1] == [entry.value]
                assert lines[row, 2] == [entry.low, entry.high]
        said = [text.get_text() for text in axes.texts]
        assert said == [*(f"{level.ratio_of_medians[arm].value:.3f}" for arm in EQUAL), "× 60.0"]
        assert [text.get_fontweight() for text in axes.texts] == ["normal"] * len(said)


def test_an_arm_that_is_not_what_it_must_be_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Latency.model_validate(latency(EQUAL | {"baseline + delay": 1.0, "other seed": 1.3}))
    figure = drawn_by(monkeypatch, latency_plot, latency_plot.plot_forest, document)
    bold = [text.get_fontweight() == "bold" for text in figure.axes[0].texts]
    assert bold == [False, True, False, False]


def test_half_of_the_calls_lie_left_of_the_median_that_the_curve_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    document = Latency.model_validate(latency(EQUAL | FAR))
    figure = drawn_by(monkeypatch, latency_plot, latency_plot.plot_ecdf, document)
    for axes, level in zip(figure.axes, document.levels.values(), strict=False):
        near = ["baseline", *EQUAL]
        assert len(axes.lines) == len(near)
        for arm, line in zip(near, axes.lines, strict=True):
            times, share = points_of(line)
            samples = np.concatenate([np.array(values) for values in level.samples_microseconds[arm]])
            np.testing.assert_allclose(np.interp(0.5, share, times), np.median(samples), rtol=1e-3)
            assert (np.diff(times) >= 0).all()
        (text,) = axes.texts
        far = level.microseconds["un-stripped DVIB"].p50
        assert text.get_text() == f"un-stripped DVIB: median {far:,.0f} µs, × 60 →"


def test_the_load_plot_shows_milliseconds_over_the_offered_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_by(monkeypatch, report_plot, report_plot.plot_load, Load.model_validate(load()))
    lines = {line.get_label(): points_of(line) for line in figure.axes[0].lines}
    rates = [1000.0, 1900.0]
    assert lines["/recommend, p50"] == (rates, [1.25, 1.25])
    assert lines["/recommend, p99"] == (rates, [3.75, 3.75])
    assert lines["constant reply, p99"] == (rates, [0.75, 0.75])
    assert lines["/recommend's most"][0] == [4321.0, 4321.0]


def test_the_stages_plot_shows_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_by(monkeypatch, report_plot, report_plot.plot_stages, Stages.model_validate(stages()))
    (bars,) = figure.axes[0].containers
    assert [patch.get_width() for patch in bars] == [64.5, 250.25, 3.5, 32.0]
    assert len({patch.get_facecolor() for patch in bars}) == 2


def test_the_peers_plot_shows_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_by(monkeypatch, report_plot, report_plot.plot_peers, Peers.model_validate(peers()))
    (bars,) = figure.axes[0].containers
    assert [patch.get_width() for patch in bars] == [80.5, 40.25, 322.0]
    assert figure.get_suptitle().startswith("numpy is faster than this project's engine")
