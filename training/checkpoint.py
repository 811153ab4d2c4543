"""Checkpoints: self-contained folders of safetensors and JSON, never pickles.

``model.safetensors``     the model's own learned tensors: all that export needs
``dvib.safetensors``      Net_φ and friends, for training only
``graph.safetensors``     training, validation and test interactions
``features.safetensors``  modality features
``ids.safetensors``       external user and item ids, titles, categories where there are any
``checkpoint.json``       configuration, data set, metrics, history, versions

The last four hardly ever change during a run; they are written once and shared between its checkpoints as hard links.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from training.common.categories import ItemCategories
from training.common.errors import CheckpointError, DataError, first_problem
from training.common.folders import atomic_folder, write_atomically
from training.common.strings import StringTable
from training.config import RunConfig
from training.data.dataset import SPLITS, Dataset, Interactions
from training.tensor_files import disk_errors

SCHEMA_VERSION = 1
INFO = "checkpoint.json"
MODEL = "model.safetensors"
DVIB = "dvib.safetensors"
GRAPH = "graph.safetensors"
FEATURES = "features.safetensors"
IDS = "ids.safetensors"
DATA_FILES = (GRAPH, FEATURES, IDS)
BEST = "best"


class DatasetInfo(BaseModel):
    """Identity of the data a run has seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    n_users: int
    n_items: int
    n_train: int
    modalities: dict[str, int]
    notes: dict[str, str | int | float | bool | None]

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetInfo:
        """Describe a data set."""
        return cls(
            name=dataset.name,
            fingerprint=dataset.fingerprint(),
            n_users=dataset.n_users,
            n_items=dataset.n_items,
            n_train=len(dataset.train),
            modalities=dataset.modalities,
            notes=dict(dataset.notes),
        )


class CheckpointInfo(BaseModel):
    """Everything about a checkpoint that is not a tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_name: Literal["dvib.checkpoint"] = "dvib.checkpoint"
    schema_version: int = SCHEMA_VERSION
    config: RunConfig
    dataset: DatasetInfo
    epoch: int
    finished: bool = False
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")
    history: list[dict[str, float]] = Field(description="one entry per epoch")
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions that can influence a result."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Write a data set's files, to be shared by all checkpoints of a run."""
    with disk_errors(folder), atomic_folder(folder) as fresh:
        graph: dict[str, NDArray[Any]] = {}
        for split in SPLITS:
            graph[f"{split}.users"] = dataset.splits[split].users
            graph[f"{split}.items"] = dataset.splits[split].items
        save_arrays(graph, fresh / GRAPH)
        save_arrays({name: np.ascontiguousarray(matrix) for name, matrix in dataset.features.items()}, fresh / FEATURES)
        save_arrays(
            {
                **dataset.user_ids.to_arrays("users"),
                **dataset.item_ids.to_arrays("items"),
                **dataset.titles.to_arrays("titles"),
                **(dataset.categories.to_arrays() if dataset.categories else {}),
            },
            fresh / IDS,
        )


def save_checkpoint(
    folder: Path, info: CheckpointInfo, model: Mapping[str, Tensor], dvib: Mapping[str, Tensor], data_folder: Path
) -> None:
    """Write a checkpoint, replacing an older one in a single step.

    Args:
        folder: The checkpoint's folder.
        info: Its description.
        model: The model's ``state_dict``.
        dvib: The objective's own tensors, possibly none.
        data_folder: What ``save_dataset`` wrote.
    """
    with disk_errors(folder), atomic_folder(folder) as fresh:
        save_tensors({name: value.detach().cpu().contiguous() for name, value in model.items()}, fresh / MODEL)
        save_tensors({name: value.detach().cpu().contiguous() for name, value in dvib.items()}, fresh / DVIB)
        for name in DATA_FILES:
            try:
                os.link(data_folder / name, fresh / name)
            except OSError:
                # A file system without hard links.
                shutil.copyfile(data_folder / name, fresh / name)
        write_atomically(fresh / INFO, info.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        folder: Where it was read from.
        info: Its description.
        dataset: The data it was trained on.
        model: The model's learned tensors.
        dvib: Tensors that only training uses.
    """

    folder: Path
    info: CheckpointInfo
    dataset: Dataset
    model: dict[str, Tensor]
    dvib: dict[str, Tensor]


def read_info(path: Path, kind: str = "checkpoint") -> Any:
    """Read a JSON description and check its schema version before anything else.

    Raises:
        CheckpointError: Missing, no JSON, or of another schema version.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {kind} at {path.parent}: {path.name} is missing; run dvib-train fit first"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; train again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: {kind} schema version {version}, this program reads {SCHEMA_VERSION}; train again"
        )
    return document


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint's folder for a run's folder or a checkpoint's own folder."""
    return path / BEST if (path / BEST / INFO).exists() else path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: A run's folder (its best checkpoint is read) or a checkpoint's folder.

    Raises:
        CheckpointError: Missing, incomplete, inconsistent, or of another schema version.
    """
    folder = find_checkpoint(path)
    document = read_info(folder / INFO)
    try:
        info = CheckpointInfo.model_validate(document)
        dataset = _load_dataset(folder, info.dataset)
        model, dvib = load_tensors(folder / MODEL), load_tensors(folder / DVIB)
    except ValidationError as error:
        raise CheckpointError(f"{folder / INFO}: {first_problem(error)}; train again") from error
    except (OSError, SafetensorError, KeyError, ValueError, DataError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is damaged: {error}; train again") from error
    if dataset.fingerprint() != info.dataset.fingerprint:
        raise CheckpointError(
            f"{folder}: the data files differ from the ones the checkpoint was made with; train again"
        )
    return Checkpoint(folder, info, dataset, model, dvib)


def _load_dataset(folder: Path, info: DatasetInfo) -> Dataset:
    graph, ids = load_arrays(folder / GRAPH), load_arrays(folder / IDS)
    return Dataset(
        name=info.name,
        user_ids=StringTable.from_arrays(ids, "users"),
        item_ids=StringTable.from_arrays(ids, "items"),
        titles=StringTable.from_arrays(ids, "titles"),
        splits={split: Interactions(graph[f"{split}.users"], graph[f"{split}.items"]) for split in SPLITS},
        features=load_arrays(folder / FEATURES),
        notes=info.notes,
        categories=ItemCategories.from_arrays(ids),
    )
