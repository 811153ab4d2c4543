"""Stripping: the model out of its training objective. What stays behind is in ``export.removed``."""

from __future__ import annotations

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
