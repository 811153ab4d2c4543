"""The quality benchmark's figures: rows for the document, lines for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.ledger import Record
from benchmarks.output import ProgressBar
from benchmarks.quality import Combination
from training.config import RunConfig

Row = dict[str, Any]


class EpochLine:
    """Implements ``Reporter``: says in the bar's description how far the current run is.

    Args:
        bar: Where to.
        what: The run.
        monitor: The validation metric to show.
    """

    def __init__(self, bar: ProgressBar, what: str, monitor: str) -> None:
        self._bar = bar
        self._what = what
        self._monitor = monitor
        self._best = 0.0
        bar.describe(what)

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Do nothing."""

    def step_done(self) -> None:
        """Do nothing."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Show the epoch and the best value so far."""
        if improved:
            self._best = entry[f"valid/{self._monitor}"]
        self._bar.describe(f"{self._what}: epoch {int(entry['epoch'])}, best {self._monitor} {self._best:.4f}")

    def warned(self, message: str) -> None:
        """Leave the message on a line of its own."""
        self._bar.line(f"{self._what}: {message}")


class Lines:
    """Implements ``Watcher``: one line on stderr for every run that ends; a long comparison must not be silent.

    Args:
        bar: Where to.
        metrics: What a line shows.
    """

    def __init__(self, bar: ProgressBar, metrics: Sequence[str]) -> None:
        self._bar = bar
        self._metrics = metrics

    def begin(self, what: str, config: RunConfig) -> EpochLine:
        """Show what is being run."""
        return EpochLine(self._bar, what, config.training.monitor)

    def end(self, what: str, record: Record, *, known: bool) -> None:
        """Say how a run ended."""
        if "error" in record:
            said = f"FAILED, {record['error']}"
        else:
            split = "valid" if what.startswith("trial ") else "test"
            values = ", ".join(f"{name} {record[split][name]:.4f}" for name in self._metrics if name in record[split])
            spent = "as in the file" if known else f"{record['seconds']:.0f} s"
            said = f"{split} {values} (epoch {record['epoch']} of {record['epochs']}, {spent})"
        self._bar.line(f"{what}: {said}")
        self._bar.advance()


def make_rows(
    combinations: Sequence[Combination],
    runs: Mapping[str, Sequence[Record]],
    baselines: Mapping[str, Mapping[str, float]],
) -> list[Row]:
    """Put runs together, line by line, after those that need no training.

    Args:
        combinations: The lines, in order.
        runs: Label → its runs, one for each seed in the same order.
        baselines: Label → metric → value.

    Returns:
        One row each: ``metrics`` maps a name to mean and standard deviation, ``versus_plain`` to the mean of the
        differences from the plain model's run with the same seed, and with how many seeds the row is better.
    """
    rows: list[Row] = [
        {"label": label, "metrics": {name: {"mean": value, "sd": 0.0} for name, value in metrics.items()}}
        for label, metrics in baselines.items()
    ]
    for combination in combinations:
        all_runs = runs[combination.label]
        good = [run for run in all_runs if "error" not in run]
        row: Row = {
            "label": combination.label,
            "model": combination.model,
            "variant": combination.variant,
            "runs": len(good),
            "failed": [run["error"] for run in all_runs if "error" in run],
            "metrics": {name: _spread([run["test"][name] for run in good]) for name in good[0]["test"]} if good else {},
        }
        if good:
            row["epoch"] = statistics.mean(run["epoch"] for run in good)
            row["seconds"] = statistics.mean(run["seconds"] for run in good)
        plain = runs.get(combination.model, ())
        pairs = [
            (run["test"], base["test"])
            for run, base in zip(all_runs, plain, strict=False)
            if "error" not in run and "error" not in base
        ]
        if combination.variant != "none" and pairs:
            row["versus_plain"] = {name: _differences(pairs, name) for name in pairs[0][0]}
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def _differences(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], name: str) -> dict[str, float]:
    differences = [ours[name] - plain[name] for ours, plain in pairs]
    return {
        "mean": statistics.mean(differences),
        "better": sum(value > 0 for value in differences),
        "pairs": len(differences),
    }


def table(title: str, rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[str]:
    """Yield the rows as lines; the last column compares the first metric with the plain model's, seed by seed."""
    width = max(len(row["label"]) for row in rows) + 2
    several = any(row.get("runs", 0) > 1 for row in rows)
    compared = any("versus_plain" in row for row in rows)
    column = 19 if several else 14
    yield title
    yield (
        " " * width
        + "".join(f"{name:>{column}}" for name in metrics)
        + (f"   {metrics[0]} against plain" if compared else "")
    )
    for row in rows:
        line = f"{row['label']:<{width}}"
        if row["metrics"]:
            cells = (row["metrics"][name] for name in metrics)
            shown = (
                f"{cell['mean']:.4f}" + (f" ± {cell['sd']:.4f}" if row.get("runs", 0) > 1 else " " * 9 * several)
                for cell in cells
            )
            line += "".join(f"{cell:>{column}}" for cell in shown)
        if "versus_plain" in row:
            change = row["versus_plain"][metrics[0]]
            line += f"   {change['mean']:+.4f}, better with {change['better']} of {change['pairs']}"
        for error in row.get("failed", ()):
            line += f"   FAILED: {error}"
        yield line.rstrip()
