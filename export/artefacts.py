"""The files of a bundle that are made with torch, and what a bundle says of where it comes from."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from export import bundle
from export.graphs import EXAMPLE_USERS, FullGraph, ItemTower, UserTower
from export.onnx_graph import GraphTooLargeError, export_onnx, onnx_of, outline_of
from export.parity import LargeBlocks, Scores
from export.program import drop, save_program, trace_program, unread
from export.serving import SeenItems
from export.torchscript import save_torchscript
from export.writing import write_array
from training.build import model_data
from training.checkpoint import Checkpoint
from training.data.dataset import Dataset
from training.data.options import DataOptions
from training.evaluation import GroupedItems
from training.models.base import Recommender
from training.scaling import scalings_of


@dataclass(frozen=True)
class FullGraphs:
    """What was written of a model's whole inference.

    Attributes:
        outline: The outline of a graph that is too large for a file; None where ``model.onnx`` was written.
        paths: Name → scores of the other files, computed by the very objects that were saved: reading the files back
            would unpickle what is in them.
        absent: File that was not written → reason.
    """

    outline: bytes | None = None
    paths: dict[str, Scores] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def full_graph_onnx(model: Recommender) -> bytes:
    """Export a model's whole inference.

    Raises:
        GraphTooLargeError: It does not fit into a file; ``full_graph_outline`` exports what can be compared of it.
    """
    return export_onnx(FullGraph(model), EXAMPLE_USERS, ["users"], "scores")


def full_graph_outline(model: Recommender) -> bytes:
    """Export the outline of a model's whole inference."""
    return outline_of(trace_program(FullGraph(model), EXAMPLE_USERS), ["users"], "scores")


def write_full_graphs(
    model: Recommender, folder: Path, dataset: Dataset, on_stage: Callable[[str], None]
) -> FullGraphs:
    """Write ``model.onnx``, ``model.pt2`` and ``model.ts``: three forms of one graph, as far as they fit into files.

    Args:
        model: Stripped. It loses the parameters and buffers that inference never reads, which no file needs.
        folder: The bundle in the making.
        dataset: For the numbers of users and items.
        on_stage: Told what happens.
    """
    module = FullGraph(model)
    on_stage("exporting the full graph")
    program = trace_program(module, EXAMPLE_USERS)
    try:
        (folder / bundle.MODEL_ONNX).write_bytes(onnx_of(program, ["users"], "scores"))
    except GraphTooLargeError as error:
        absent = dict.fromkeys((bundle.MODEL_ONNX, bundle.PROGRAM, bundle.TORCHSCRIPT), str(error))
        return FullGraphs(outline=outline_of(program, ["users"], "scores"), absent=absent)
    idle = unread(program)
    if idle:
        drop(module, idle)
        program = trace_program(module, EXAMPLE_USERS)
    on_stage("saving the torch.export program")
    save_program(program, folder / bundle.PROGRAM)
    on_stage("tracing TorchScript")
    traced = save_torchscript(module, folder / bundle.TORCHSCRIPT, dataset.n_users)
    return FullGraphs(
        paths={
            name: LargeBlocks(module_scores(graph), dataset.n_users, dataset.n_items)
            for name, graph in (("torchscript", traced), ("program", program.module()))
        }
    )


def user_tower_onnx(vectors: Tensor) -> bytes:
    """Export the tower that looks user vectors up, float32 [U, D]."""
    return export_onnx(UserTower(vectors), EXAMPLE_USERS, ["users"], "vectors")


def item_tower_onnx(model: Recommender, dataset: Dataset, options: DataOptions) -> bytes | None:
    """Export the tower for unseen items, or return None for a model that cannot place them.

    Args:
        model: The model, in evaluation mode.
        dataset: What it was trained on, with raw features: these the tower takes.
        options: How they are scaled for the model; the tower does it first.

    Raises:
        GraphTooLargeError: The features of the trained items, which FREEDOM's tower holds, do not fit into a file.
    """
    with torch.no_grad():
        encoder = model.item_encoder(model_data(dataset, options).features)
    if encoder is None:
        return None
    examples = [torch.zeros(2, width) for width in dataset.modalities.values()]
    tower = ItemTower(encoder, tuple(dataset.modalities), scalings_of(dataset, options))
    return export_onnx(tower, examples, tuple(dataset.modalities), "vectors")


def model_scores(model: Recommender) -> Scores:
    """Return a model's own scores, from vectors that are computed once."""
    with torch.no_grad():
        user_vectors, item_vectors = model.vectors()

    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray((user_vectors[torch.from_numpy(users)] @ item_vectors.T).numpy())

    return run


def module_scores(graph: Callable[[Tensor], Tensor]) -> Scores:
    """Return the scores of a module or program, ``users`` int64 [B] → ``scores`` float32 [B, I]."""

    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(graph(torch.from_numpy(users)).numpy())

    return run


def seen_items(dataset: Dataset) -> SeenItems:
    """Return the users' training items, which are never recommended to them."""
    seen = GroupedItems.of(dataset.train, dataset.n_users)
    return SeenItems(seen.offsets.numpy(), seen.items.numpy().astype(np.int32))


def write_rows(dataset: Dataset, folder: Path) -> None:
    """Write ids, titles and categories, seen items and popularity."""
    save_file(
        {
            **dataset.user_ids.to_arrays("users"),
            **dataset.item_ids.to_arrays("items"),
            **dataset.titles.to_arrays("titles"),
            **(dataset.categories.to_arrays() if dataset.categories else {}),
        },
        folder / bundle.IDS,
    )
    seen = seen_items(dataset)
    save_file({"offsets": seen.offsets, "items": seen.items}, folder / bundle.SEEN)
    write_array(folder / bundle.POPULARITY, dataset.popularity())


def provenance(checkpoint: Checkpoint) -> dict[str, str | int | float | bool | None]:
    """Return what a bundle says of its training and of the programs that made it."""
    packages = ("dvib", "torch", "onnx", "onnxscript", "numpy")
    return {
        "epoch": checkpoint.info.epoch,
        "epochs_trained": len(checkpoint.info.history),
        "seed": checkpoint.info.config.training.seed,
        **{f"version.{name}": importlib.metadata.version(name) for name in packages},
        "version.onnxruntime": _first_version("onnxruntime", "onnxruntime-gpu"),
        "version.faiss": faiss.__version__,
    }


def _first_version(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
