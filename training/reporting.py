"""Progress of a run on a console: a bar where somebody is watching, one line per epoch everywhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.config import RunConfig
from training.watch.alarms import NEVER_TRAINED, PLACES
from training.watch.worth import WORTH

EPOCHS_BETWEEN_WORTH = 10
"""On the console; the log has every epoch's."""


class Reporter(Protocol):
    """Shows progress; the trainer itself prints nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """An epoch with so many steps begins."""

    def step_done(self) -> None:
        """One step is over."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """An epoch is over; ``entry`` is its line in the log."""

    def warned(self, message: str) -> None:
        """Something about the run deserves attention; told once."""


class SilentReporter:
    """Shows nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Do nothing."""

    def step_done(self) -> None:
        """Do nothing."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Do nothing."""

    def warned(self, message: str) -> None:
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
        self._next_worth = 0.0
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
        """Write the epoch's line: time, every loss term, the monitored metric. Now and then what terms are worth."""
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
        if any(name.startswith(WORTH) for name in entry) and entry["epoch"] >= self._next_worth:
            self._next_worth = entry["epoch"] + EPOCHS_BETWEEN_WORTH
            self._console.print(f"          {worth_line(entry)}", highlight=False, soft_wrap=True)

    def warned(self, message: str) -> None:
        """Write the warning on a line of its own."""
        self._console.print(f"warning: {message}", highlight=False, soft_wrap=True, markup=False)


def worth_line(entry: dict[str, float]) -> str:
    """Say in one line what an epoch's log holds beside losses and metrics."""
    worth = {name.removeprefix(WORTH): value for name, value in entry.items() if name.startswith(WORTH)}
    parts = ["gradients over L0's: " + ", ".join(f"{name} {value:.2g}" for name, value in worth.items())]
    if "gradient/mean" in entry:
        parts.append(f"gradient {entry['gradient/mean']:.2g}, at most {entry['gradient/max']:.2g}")
    if "watch/phi_mean" in entry:
        mean, deviation, least, most = (entry[f"watch/phi_{name}"] for name in ("mean", "sd", "min", "max"))
        parts.append(f"φ {mean:.3f} ± {deviation:.3f}, {least:.3f} to {most:.3f}")
    if NEVER_TRAINED in entry:
        parts.append(f"never trained: {entry[NEVER_TRAINED]:.1%} of the first {PLACES}")
    return "; ".join(parts)
