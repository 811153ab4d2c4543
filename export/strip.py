"""Stripping: the model out of its training objective, and what stays behind."""

from __future__ import annotations

from dataclasses import dataclass

from training.build import build_model, build_objective, load_model, load_tensors
from training.checkpoint import Checkpoint
from training.dvib.objective import Objective
from training.models.base import Recommender


def trained_objective(checkpoint: Checkpoint) -> Objective:
    """Return the objective as it was trained: the model with whatever its variant put around it."""
    objective = build_objective(checkpoint.info.config, checkpoint.dataset)
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    load_tensors(objective, {**tensors, **checkpoint.dvib}, checkpoint.folder)
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
    if transplant:
        return load_model(checkpoint)
    return build_model(checkpoint.info.config, checkpoint.dataset).eval()


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
