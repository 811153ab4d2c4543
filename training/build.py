"""From configuration and data to a model and its objective: the same way for training, evaluation and export."""

from __future__ import annotations

import numpy as np
import torch

from training.config import RunConfig
from training.data.dataset import Dataset
from training.dvib.objective import Objective, make_objective
from training.models import model_class
from training.models.base import ModelData, Recommender
from training.randomness import stream


def _tensor(array: np.ndarray) -> torch.Tensor:
    # Data set arrays are read-only; models copy what they keep, so a private copy here would only cost memory.
    return torch.from_numpy(array.view() if array.flags.writeable else np.array(array))


def model_data(dataset: Dataset) -> ModelData:
    """Return what models see of a data set, as CPU tensors."""
    return ModelData(
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        features={name: _tensor(matrix) for name, matrix in dataset.features.items()},
        edges=torch.from_numpy(np.stack([dataset.train.users, dataset.train.items])),
    )


def build_model(config: RunConfig, dataset: Dataset) -> Recommender:
    """Create a model with its initial values, on the CPU."""
    cls = model_class(config.model_name)
    return cls(cls.Config.model_validate(config.model), model_data(dataset), stream(config.training.seed, "initial"))


def build_objective(config: RunConfig, dataset: Dataset) -> Objective:
    """Create a model and the objective that its variant asks for, on the CPU."""
    model = build_model(config, dataset)
    return make_objective(model, config.dvib, stream(config.training.seed, "net_phi"))
