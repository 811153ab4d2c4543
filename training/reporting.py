"""Progress of a run on a console: a bar where somebody is watching, one line per epoch everywhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.config import RunConfig


class Reporter(Protocol):
    """Shows progress; the trainer itself prints nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """An epoch with so many steps begins."""

    def step_done(self) -> None:
        """One step is over."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """An epoch is over; ``entry`` is its line in the log."""


class SilentReporter:
    """Shows nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Do nothing."""

    def step_done(self) -> None:
        """Do nothing."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Do nothing."""


class ConsoleReporter:
    """Implements ``Reporter`` with rich.

    Args:
        console: Where to write.
        config: The run, for the monitored metric.
    """

    def __init__(self, console: Console, config: RunConfig) -> None:
        self._console = console
        self._monitor = config.training.monitor
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self._progress.stop()

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Start the bar of an epoch."""
        self._progress.reset(self._task, total=steps, description=f"epoch {epoch}")

    def step_done(self) -> None:
        """Move the bar on."""
        self._progress.advance(self._task)

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Write the epoch's line: time, every loss term, the monitored metric."""
        losses = " ".join(
            f"{name.removeprefix('loss/')} {value:.4g}" for name, value in entry.items() if name.startswith("loss/")
        )
        mark = " *" if improved else ""
        self._console.print(
            f"epoch {int(entry['epoch']):>3} {entry['train_seconds']:6.2f}s  {losses}  "
            f"valid {self._monitor} {entry[f'valid/{self._monitor}']:.4f}{mark}",
            highlight=False,
            soft_wrap=True,
        )
