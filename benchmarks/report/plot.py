"""What the report's plots share, and the plots of its parts about one bundle."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib as mpl

from benchmarks.report.parts_documents import Load, Peers, Stages
from benchmarks.report.text import listed

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLACK, GREY, BLUE, SKY, GREEN = "#000000", "#777777", "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILLION, PINK = "#E69F00", "#D55E00", "#CC79A7"
PALE = "#cfe8d5"
_LEGEND_INCHES, _LETTERS_PER_INCH = 2.4, 10


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG, the same bytes from the same figures, and close it.

    Args:
        figure: From ``new_figure``.
        stem: The files' path without the ending.

    Returns:
        The two files.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [stem.with_name(f"{stem.name}{ending}") for ending in (".png", ".svg")]
    with mpl.rc_context({"svg.hashsalt": "dvib"}):
        figure.savefig(written[0], dpi=110)
        figure.savefig(written[1], metadata={"Date": None})
    pyplot.close(figure)
    return written


def new_figure(title: str, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row.

    Args:
        title: Says what the figure shows; lines are broken to stay beside the legend.
        rows: Of panels.
        columns: Of panels.
        size: Inches.
    """
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    width = round(_LETTERS_PER_INCH * (size[0] - _LEGEND_INCHES))
    text = "\n".join(fill(line, width) for line in title.splitlines())
    figure.suptitle(text, fontsize=12, x=0.5 - _LEGEND_INCHES / size[0] / 2)
    return figure, list(panels.flat)


def plot_stages(document: Stages, stem: Path) -> list[Path]:
    """Draw a bar for each stage of a request and for the floors.

    Args:
        document: The measurement.
        stem: The files' path without the ending.

    Returns:
        The files written.
    """
    floors = document.floors
    bar = "" if floors.bar is None else f" (bar: {floors.bar:g})"
    title = (
        f"The engine takes {floors.ratio.value:.2f} × its floors{bar}\n{document.bundle.dataset}, "
        f"{document.bundle.n_items:,} items, d = {document.bundle.dimension}, k = {document.options.k}, "
        f"users per call: {document.options.users_per_call}"
    )
    medians = {name: stage.microseconds.p50 for name, stage in document.stages.items()}
    floor_names = {name for name, stage in document.stages.items() if stage.what.startswith("floor")}
    return _bars(title, medians, floor_names, ("a stage, or a whole of stages", "a floor: no answer without it"), stem)


def plot_peers(document: Peers, stem: Path) -> list[Path]:
    """Draw a bar for each way to do the same job.

    Args:
        document: The measurement.
        stem: The files' path without the ending.

    Returns:
        The files written.
    """
    faster = [name for name, arm in document.arms.items() if arm.ratio_to_ours.high < 1]
    said = f"{listed(faster)} {'is' if len(faster) == 1 else 'are'}" if faster else "No peer is"
    title = (
        f"{said} faster than this project's engine\n{document.bundle.dataset}, {document.bundle.n_items:,} items, "
        f"d = {document.bundle.dimension}, k = {document.options.k}, one user per call, one thread"
    )
    medians = {name: arm.microseconds.p50 for name, arm in document.arms.items()}
    return _bars(title, medians, {*medians} - {document.ours}, ("this project's engine", "a peer"), stem)


def _bars(title: str, medians: dict[str, float], grey: set[str], labels: tuple[str, str], stem: Path) -> list[Path]:
    """Draw a bar for each median; ``labels`` say what blue and grey ones are."""
    figure, (axes,) = new_figure(title, 1, 1, (11, 0.5 * len(medians) + 1.6))
    axes.barh(list(medians), list(medians.values()), height=0.6, color=[GREY if n in grey else BLUE for n in medians])
    for row, value in enumerate(medians.values()):
        axes.annotate(f"{value:,.1f}", (value, row), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(medians.values()) * 1.12)
    axes.set_xlabel("median microseconds")
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    patches = [Patch(color=colour, label=label) for colour, label in zip((BLUE, GREY), labels, strict=True)]
    figure.legend(handles=patches, loc="outside right upper", fontsize=10)
    return save(figure, stem)


def plot_load(document: Load, stem: Path) -> list[Path]:
    """Draw latency against the rate of requests, of the service and of the constant reply.

    Args:
        document: The run.
        stem: The files' path without the ending.

    Returns:
        The files written.
    """
    speed = document.bars.get("throughput")
    share = "" if speed is None else f", {speed.ratio.value:.0%} of a constant reply's"
    most = max(figures.bundle.replies_per_second for figures in document.loads.values())
    bundle = document.bundles.bundle
    title = (
        f"/recommend answers up to {most:,.0f} requests/s on one worker{share}\n{document.dataset}, "
        f"{bundle.n_items:,} items, d = {bundle.dimension}, k = {document.options.k}"
    )
    figure, (axes,) = new_figure(title, 1, 1, (11, 5.5))
    lines = (
        ("/recommend", BLUE, "o", [figures.bundle for figures in document.loads.values()]),
        ("constant reply", GREY, "s", [figures.constant for figures in document.loads.values()]),
    )
    for label, colour, mark, found in lines:
        opened = sorted((one for one in found if one.offered_per_second), key=lambda one: one.offered_per_second or 0)
        for quantile, line in (("p50", "-"), ("p99", "--")):
            axes.plot(
                [one.offered_per_second or 0 for one in opened],
                [getattr(one.latency_microseconds, quantile) / 1e3 for one in opened],
                marker=mark,
                linestyle=line,
                color=colour,
                label=f"{label}, {quantile}",
            )
    axes.axvline(most, color=BLUE, linewidth=1, linestyle=":", label="/recommend's most")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel("requests per second that were due (open loop)")
    axes.set_ylabel("milliseconds from when a request was due to its reply")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=10)
    return save(figure, stem)
