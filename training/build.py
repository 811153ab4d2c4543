"""From configuration and data to a model and its objective: the same way for training, evaluation and export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import Checkpoint
from training.common.errors import CheckpointError
from training.config import RunConfig
from training.data.dataset import Dataset
from training.data.options import DataOptions
from training.dvib.objective import Objective, make_objective
from training.models import model_class
from training.models.base import ModelData, Recommender
from training.randomness import stream
from training.robust.amr import Adversary
from training.scaling import scalings_of


def model_data(
    dataset: Dataset, options: DataOptions | None = None, *, measured_on: Dataset | None = None
) -> ModelData:
    """Return what models see of a data set, as CPU tensors.

    Args:
        dataset: Holds the raw features; a checkpoint keeps these.
        options: Says how features are scaled; the defaults by default.
        measured_on: Whose means and deviations scale them; by default their own.
    """
    scalings = scalings_of(measured_on or dataset, options or DataOptions())
    # Data set arrays are read-only, and torch has no such tensors: every matrix is copied, scaled or not.
    features = {
        name: scalings[name].apply(matrix) if name in scalings else matrix.copy()
        for name, matrix in dataset.features.items()
    }
    return ModelData(
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        features={name: torch.from_numpy(matrix) for name, matrix in features.items()},
        edges=torch.from_numpy(np.stack([dataset.train.users, dataset.train.items])),
    )


def build_model(config: RunConfig, dataset: Dataset, *, measured_on: Dataset | None = None) -> Recommender:
    """Create a model with its initial values, on the CPU. Arguments as for ``model_data``."""
    cls = model_class(config.model_name)
    data = model_data(dataset, config.data, measured_on=measured_on)
    return cls(cls.Config.model_validate(config.model), data, stream(config.training.seed, "initial"))


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put saved tensors into a module that must have exactly these.

    Args:
        module: A model or an objective.
        tensors: Name → value.
        folder: Where they were read, for the message.

    Raises:
        CheckpointError: Names or shapes do not fit.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder}: the tensors do not fit the configuration: {reason}; train again") from error


def load_model(checkpoint: Checkpoint, *, seeing: Dataset | None = None) -> Recommender:
    """Build a checkpoint's model with its learned tensors, ready for inference.

    Args:
        checkpoint: What was trained.
        seeing: The same data with other features of the same widths, scaled as those that it was trained on; by
            default its own.

    Raises:
        CheckpointError: The tensors do not fit the configuration.
    """
    model = build_model(checkpoint.info.config, seeing or checkpoint.dataset, measured_on=checkpoint.dataset)
    load_tensors(model, checkpoint.model, checkpoint.folder)
    return model.eval()


def build_objective(config: RunConfig, dataset: Dataset) -> Objective:
    """Create a model and the objective that its configuration asks for, on the CPU."""
    model = build_model(config, dataset)
    training_items = torch.from_numpy(np.unique(dataset.train.items))
    objective = make_objective(model, config.dvib, stream(config.training.seed, "net_phi"), training_items)
    if config.robust.amr:
        objective.adversary = Adversary(config.robust, dataset.modalities)
    return objective
