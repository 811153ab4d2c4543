"""A run's curves, from its log: loss terms, validation metric, what each term is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from training.checkpoint import BEST, INFO, CheckpointInfo, read_info
from training.common.errors import CheckpointError, ConfigError, nearest
from training.common.folders import atomic_file
from training.resume import LOG
from training.watch.alarms import NEGLIGIBLE
from training.watch.worth import WORTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves"
FORMATS = ("png", "svg")
Entry = Mapping[str, float]
# Told apart by line and mark, not by colour alone: grey prints and colour-blind readers lose nothing.
_LINES = ("-", "--", "-.", ":")
_SYMBOLS = ("o", "s", "^", "x", "d")
_GREYS = ("0.0", "0.35", "0.55", "0.2")
_MARKS = 12
_NOT_LOSSES = {"loss/phi_mean", "loss/hidden_norm", "loss/js"}


def read_log(run: Path) -> list[dict[str, float]]:
    """Read a run's log.

    Args:
        run: Its folder.

    Raises:
        CheckpointError: There is none, it is empty, or it is no log.
    """
    path = run / LOG
    try:
        # What follows the last line's end is a line that is being written.
        entries = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    except FileNotFoundError as error:
        raise CheckpointError(f"{run}: no run, {LOG} is missing; run dvib-train fit first") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    numbers = all(
        isinstance(entry, dict) and "epoch" in entry and all(isinstance(value, int | float) for value in entry.values())
        for entry in entries
    )
    if not entries or not numbers:
        raise CheckpointError(f"{path}: one line of numbers per epoch is wanted; the run has made none yet")
    return entries


def best_epoch(entries: Sequence[Entry], metric: str, decimals: int | None = None) -> int:
    """Return the first epoch with the largest value of a validation metric.

    Args:
        entries: The log.
        metric: Its name.
        decimals: Round before comparing, as early stopping does; None compares exactly.
    """

    def place(entry: Entry) -> tuple[float, float]:
        value = entry[f"valid/{metric}"]
        return (value if decimals is None else round(value, decimals), -entry["epoch"])

    return int(max(entries, key=place)["epoch"])


def _decimals(run: Path, metric: str) -> int | None:
    """Return to how many decimals a run rounds a metric; None for another than it monitors."""
    try:
        training = CheckpointInfo.model_validate(read_info(run / BEST / INFO)).config.training
    except (CheckpointError, ValidationError):
        # A log is drawn without a checkpoint that can be read, too.
        return None
    return training.monitor_decimals if metric == training.monitor else None


def draw_curves(run: Path, metric: str | None = None) -> list[Path]:
    """Draw a run's log into ``curves.png`` and ``curves.svg`` in its folder.

    Args:
        run: Its folder.
        metric: Validation metric to show, for example ``recall@20``; that, or else the first logged, by default.

    Returns:
        The files.

    Raises:
        CheckpointError: There is no log.
        ConfigError: The log has no such metric.
    """
    # The figure draws itself: no window system, and nothing is shared with a figure that somebody else may have open.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(run)
    known = [name.removeprefix("valid/") for name in entries[0] if name.startswith("valid/")]
    chosen = metric or ("recall@20" if "recall@20" in known else known[0])
    if chosen not in known:
        raise ConfigError(f"{run / LOG}: no validation metric '{chosen}'{nearest(chosen, known)}")
    worth = any(name.startswith(WORTH) for entry in entries for name in entry)
    # Text stays text in the SVG, and the same log gives the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dvib"}):
        figure = Figure(figsize=(6 * (3 if worth else 2), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes: list[Axes] = list(figure.subplots(1, 3 if worth else 2))
        _draw_losses(axes[0], entries)
        _draw_metric(axes[1], entries, chosen, _decimals(run, chosen))
        if worth:
            _draw_worth(axes[2], entries)
        figure.suptitle(run.resolve().name, parse_math=False)
        paths = [run / f"{CURVES}.{kind}" for kind in FORMATS]
        for path, kind in zip(paths, FORMATS, strict=True):
            with atomic_file(path) as fresh:
                metadata = {"Date": None} if kind == "svg" else {"Software": None}
                figure.savefig(fresh, format=kind, dpi=110, metadata=metadata)
    return paths


def _draw_losses(axes: Axes, entries: Sequence[Entry]) -> None:
    names = [name for name in entries[0] if name.startswith("loss/") and name not in _NOT_LOSSES]
    _lines(axes, entries, {name: name.removeprefix("loss/") for name in names})
    values = [abs(entry[name]) for entry in entries for name in names if entry.get(name)]
    if values and max(values) > 100 * min(values):
        # Terms of very different sizes, of either sign.
        axes.set_yscale("symlog", linthresh=max(min(values), 1e-8 * max(values)))
    axes.set(title="loss terms, mean over the epoch", xlabel="epoch")
    axes.legend(fontsize="small")


def _draw_metric(axes: Axes, entries: Sequence[Entry], metric: str, decimals: int | None) -> None:
    _lines(axes, entries, {f"valid/{metric}": metric})
    best = best_epoch(entries, metric, decimals)
    value = next(entry[f"valid/{metric}"] for entry in entries if entry["epoch"] == best)
    axes.axvline(best, color="0.6", linewidth=0.8)
    axes.plot([best], [value], linestyle="none", marker="*", markersize=14, color="0.0")
    axes.set(title=f"validation {metric}, best {value:.4f} in epoch {best}", xlabel="epoch")


def _draw_worth(axes: Axes, entries: Sequence[Entry]) -> None:
    names = list(dict.fromkeys(name for entry in entries for name in entry if name.startswith(WORTH)))
    _lines(axes, entries, {name: name.removeprefix(WORTH) for name in names}, positive=True)
    axes.axhline(NEGLIGIBLE, color="0.6", linewidth=0.8)
    axes.annotate("nothing is learned below", (0.02, NEGLIGIBLE), (0, 3), ("axes fraction", "data"), "offset points")
    axes.set_yscale("log")
    axes.set(title="gradient of each term, over L0's", xlabel="epoch")
    axes.legend(fontsize="small")


def _lines(axes: Axes, entries: Sequence[Entry], names: Mapping[str, str], *, positive: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    styles = zip(cycle(_LINES), cycle(_SYMBOLS), strict=False)
    for (name, label), (line, mark), grey in zip(names.items(), styles, cycle(_GREYS), strict=False):
        points = [(e["epoch"], e[name]) for e in entries if name in e and (e[name] > 0 or not positive)]
        every = max(1, len(points) // _MARKS)
        epochs, values = [x for x, _ in points], [y for _, y in points]
        axes.plot(epochs, values, line, marker=mark, markevery=every, markersize=4, color=grey, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="0.9")
