"""Stripping: the model out of its training objective, and what stays behind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training.build import build_model, build_objective
from training.checkpoint import Checkpoint
from training.common.errors import CheckpointError
from training.dvib.objective import Objective
from training.models.base import Recommender


def _load(module: nn.Module, tensors: dict[str, object], checkpoint: Checkpoint) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{checkpoint.folder}: the tensors do not fit the configuration: {lines[-1].strip()}; train again"
        ) from error


def trained_objective(checkpoint: Checkpoint) -> Objective:
    """Return the objective as it was trained: the model with whatever its variant put around it."""
    objective = build_objective(checkpoint.info.config, checkpoint.dataset)
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    _load(objective, {**tensors, **checkpoint.dvib}, checkpoint)
    return objective.eval()


def strip(objective: Objective) -> Recommender:
    """Take the model out of its objective. This is all that stripping is."""
    return objective.model


def plain_model(checkpoint: Checkpoint, *, transplant: bool) -> Recommender:
    """Build the baseline, which never had a wrapper, for the checkpoint's data.

    Args:
        checkpoint: Configuration and data; its variant is ignored.
        transplant: Load the checkpoint's model tensors; otherwise keep initial values.
    """
    model = build_model(checkpoint.info.config, checkpoint.dataset)
    if transplant:
        _load(model, dict(checkpoint.model), checkpoint)
    return model.eval()


@dataclass(frozen=True)
class Removed:
    """What training had and the export has not.

    Attributes:
        tensors: Name → shape.
        parameters: Their number of elements in all.
    """

    tensors: dict[str, list[int]]
    parameters: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Removed:
        """List a checkpoint's training-only tensors."""
        return cls(
            tensors={name: list(value.shape) for name, value in sorted(checkpoint.dvib.items())},
            parameters=sum(value.numel() for value in checkpoint.dvib.values()),
        )
