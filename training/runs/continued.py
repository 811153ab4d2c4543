"""Whether a run that is there is another run, or can become it by going on."""

from __future__ import annotations

from training.checkpoint import CheckpointInfo
from training.config import RunConfig
from training.runs.found import LOGGED, flat
from training.stopping import EarlyStopping

_LENGTH = ("training.epochs", "training.patience")


def differing_key(info: CheckpointInfo, wanted: RunConfig) -> str | None:
    """Return the setting that keeps a run from being, or becoming, the one that is wanted; None if there is none.

    How long it trains may differ as long as the run has not gone on where the other would have stopped.

    Args:
        info: The run's description, finished or not.
        wanted: The other's configuration.
    """
    here, there = flat(info.config), flat(wanted)
    for key, value in there.items():
        if key not in (*_LENGTH, *LOGGED) and here.get(key) != value:
            return key
    if len(info.history) > wanted.training.epochs:
        return "training.epochs"
    return "training.patience" if _stopped(info.history[:-1], wanted) else None


def is_whole(info: CheckpointInfo, wanted: RunConfig) -> bool:
    """Whether a run is over, and is the one that is wanted: trained anew, that would be the same to the bit.

    Args:
        info: The run's description.
        wanted: A configuration.
    """
    if not info.finished or differing_key(info, wanted) is not None:
        return False
    return len(info.history) == wanted.training.epochs or _stopped(info.history, wanted)


def _stopped(history: list[dict[str, float]], config: RunConfig) -> bool:
    training = config.training
    stopping = EarlyStopping(training.patience, training.monitor_decimals)
    for epoch, entry in enumerate(history, 1):
        stopping.update(entry[f"valid/{training.monitor}"], epoch)
        if stopping.stop:
            return True
    return False
