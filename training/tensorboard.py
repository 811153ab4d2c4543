"""The log's numbers for TensorBoard, beside whatever else is told about a run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from training.common.errors import MissingGroupError
from training.reporting import Reporter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardReporter:
    """Implements ``Reporter``: every number of an epoch's entry becomes a scalar at the epoch's number.

    A resumed run writes another file, which hides what an earlier one had written beyond the state that it goes on
    from.

    Args:
        folder: Where the event files go; made with the first epoch.
        inner: Is told everything as well.

    Raises:
        MissingGroupError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, inner: Reporter) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingGroupError(
                "--tensorboard needs tensorboard; run: pip install 'dvib[training,tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self._folder = folder
        self._inner = inner
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        """Do nothing: files are made when there is something to write."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is waiting, and close the file."""
        if self._writer is not None:
            self._writer.close()

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Begin the file, with the first epoch of this process."""
        if self._writer is None:
            # Whatever an interrupted run wrote from this epoch on is written again.
            self._writer = self._make(str(self._folder), purge_step=epoch)
        self._inner.epoch_started(epoch, steps)

    def step_done(self) -> None:
        """Pass it on."""
        self._inner.step_done()

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Write the epoch's numbers."""
        if self._writer is not None:
            for name, value in entry.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, int(entry["epoch"]))
            self._writer.flush()
        self._inner.epoch_done(entry, improved)

    def warned(self, message: str) -> None:
        """Write it as text, and pass it on."""
        if self._writer is not None:
            self._writer.add_text("warnings", message)
        self._inner.warned(message)
