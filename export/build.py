"""From a checkpoint to a bundle, or to nothing at all."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from export import bundle, strip
from export.certificate import Certificate, GraphFacts, judge
from export.graphs import FullGraph, ItemTower, UserTower
from export.index import build_index
from export.onnx_canonical import opset
from export.onnx_graph import export_onnx
from export.parity import Scores, TowersAndIndex, compare, onnx_scores
from export.torchscript import save_torchscript
from training.checkpoint import Checkpoint
from training.common.errors import ExportError
from training.common.folders import atomic_folder
from training.data.dataset import Dataset
from training.evaluation import GroupedItems
from training.models.base import Recommender
from training.scaling import Scaling, scalings_of

Stage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


class ProofFailedError(ExportError):
    """A proof does not hold; no bundle is written."""


def full_graph_onnx(model: Recommender) -> bytes:
    """Export a model's whole inference."""
    return export_onnx(FullGraph(model), [torch.arange(2)], ["users"], "scores")


def item_tower_onnx(
    model: Recommender, modalities: dict[str, int], scalings: Mapping[str, Scaling] | None = None
) -> bytes | None:
    """Export the tower for unseen items, or return None for a model that cannot place them.

    Args:
        model: The model.
        modalities: Name → width of the raw features that the tower takes.
        scalings: What the tower does to them first.
    """
    names = tuple(modalities)
    examples = [torch.zeros(2, width) for width in modalities.values()]
    try:
        with torch.no_grad():
            model.encode_items(dict(zip(names, examples, strict=True)))
    except NotImplementedError:
        return None
    return export_onnx(ItemTower(model, names, scalings), examples, names, "vectors")


def _model_scores(model: Recommender) -> Scores:
    """Return a model's own scores, from vectors that are computed once."""
    with torch.no_grad():
        user_vectors, item_vectors = model.vectors()

    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray((user_vectors[torch.from_numpy(users)] @ item_vectors.T).numpy())

    return run


def _module_scores(graph: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(graph(torch.from_numpy(users)).numpy())

    return run


def _write_rows(dataset: Dataset, folder: Path) -> None:
    """Write ids, seen items and popularity."""
    save_file(
        {
            **dataset.user_ids.to_arrays("users"),
            **dataset.item_ids.to_arrays("items"),
            **dataset.titles.to_arrays("titles"),
        },
        folder / bundle.IDS,
    )
    seen = GroupedItems.of(dataset.train, dataset.n_users)
    save_file({"offsets": seen.offsets.numpy(), "items": seen.items.numpy().astype(np.int32)}, folder / bundle.SEEN)
    np.save(folder / bundle.POPULARITY, dataset.popularity(), allow_pickle=False)


def _provenance(checkpoint: Checkpoint) -> dict[str, str | int | float | bool | None]:
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


def certify(
    checkpoint: Checkpoint, reference: Scores, traced: Scores, folder: Path, independent: Checkpoint | None = None
) -> Certificate:
    """Make the certificate of the files that ``build_bundle`` has put into a folder.

    Args:
        checkpoint: What was exported.
        reference: The trained model's scores.
        traced: The TorchScript module that was saved. The file is not read back: loading it would unpickle it.
        folder: Holds ``model.onnx``, ``user_tower.onnx`` and ``items.faiss``.
        independent: A baseline trained on the same data by itself; without it, a fresh one with other initial values.
    """
    data = (folder / bundle.MODEL_ONNX).read_bytes()
    transplanted = strip.plain_model(checkpoint, transplant=True)
    learned = sorted(f"model.{name}" for name in transplanted.state_dict())
    if independent is None:
        other, source = strip.plain_model(checkpoint, transplant=False), "baseline with initial values, never trained"
    else:
        other, source = strip.plain_model(independent, transplant=True), "baseline trained independently"
    towers = TowersAndIndex((folder / bundle.USER_TOWER).read_bytes(), faiss.read_index(str(folder / bundle.INDEX)))
    parity = compare(
        reference,
        {"onnx": onnx_scores(data), "torchscript": traced},
        towers,
        checkpoint.dataset.n_users,
        checkpoint.dataset.n_items,
    )
    facts = (
        GraphFacts.of(data, learned),
        GraphFacts.of(full_graph_onnx(transplanted), learned),
        GraphFacts.of(full_graph_onnx(other), learned),
    )
    removed = strip.Removed.of(checkpoint)
    return Certificate(
        variant=checkpoint.info.config.dvib.variant,
        learned=learned,
        exported=facts[0],
        transplanted=facts[1],
        independent=facts[2],
        independent_source=source,
        parity={name: agreement.document() for name, agreement in parity.items()},
        removed={"tensors": removed.tensors, "parameters": removed.parameters},
        proofs=judge(*facts, parity),
    )


def build_bundle(
    checkpoint: Checkpoint, out: Path, *, independent: Checkpoint | None = None, on_stage: Stage = lambda _: None
) -> tuple[bundle.Manifest, Certificate]:
    """Export a checkpoint into a certified bundle.

    Args:
        checkpoint: From ``training.checkpoint.load_checkpoint``.
        out: The bundle's folder; an existing one is replaced in a single step.
        independent: A baseline of the same model, trained by itself on the same data, for the blanked proof.
        on_stage: Told what happens.

    Returns:
        Manifest and certificate as written.

    Raises:
        ExportError: The baseline does not belong to the checkpoint, or ``out`` holds something that is no bundle.
        ProofFailedError: A proof does not hold; nothing is written.
    """
    if independent is not None:
        _check_comparable(checkpoint, independent)
    if out.exists() and not bundle.is_bundle(out):
        raise ExportError(f"{out} is no bundle and is not replaced; choose another --out")
    dataset, info = checkpoint.dataset, checkpoint.info
    with atomic_folder(out) as folder:
        on_stage("stripping")
        trained = strip.trained_objective(checkpoint)
        model = strip.strip(trained).eval()
        on_stage("exporting the full graph")
        (folder / bundle.MODEL_ONNX).write_bytes(full_graph_onnx(model))
        with torch.no_grad():
            user_vectors, item_vectors = (vectors.detach().clone() for vectors in model.vectors())
        on_stage("exporting the towers")
        tower = export_onnx(UserTower(user_vectors), [torch.arange(2)], ["users"], "vectors")
        (folder / bundle.USER_TOWER).write_bytes(tower)
        absent: dict[str, str] = {}
        item_tower = item_tower_onnx(model, dataset.modalities, scalings_of(dataset, info.config.data))
        if item_tower is None:
            absent[bundle.ITEM_TOWER] = f"{info.config.model_name} cannot place items that it was not trained with"
        else:
            (folder / bundle.ITEM_TOWER).write_bytes(item_tower)
        on_stage("indexing the items")
        items = np.ascontiguousarray(item_vectors.numpy())
        np.save(folder / bundle.ITEMS, items, allow_pickle=False)
        index = build_index(items, folder / bundle.INDEX)
        _write_rows(dataset, folder)
        on_stage("tracing")
        traced = save_torchscript(FullGraph(model), folder / bundle.TORCHSCRIPT, dataset.n_users)
        on_stage("proving")
        # The trained model itself is the reference, not what stripping made of it.
        reference = _model_scores(trained.model)
        certificate = certify(checkpoint, reference, _module_scores(traced), folder, independent)
        failed = sorted(name for name, held in certificate.proofs.items() if not held)
        if failed:
            raise ProofFailedError(
                f"{checkpoint.folder}: the export is not the baseline's: proof {', '.join(failed)} failed "
                f"({certificate.explain(failed[0])}); no bundle is written"
            )
        (folder / bundle.CERTIFICATE).write_text(certificate.model_dump_json(indent=2) + "\n", "utf-8")
        manifest = bundle.write_manifest(
            folder,
            model=info.config.model_name,
            variant=info.config.dvib.variant,
            preset=info.config.preset,
            dataset=bundle.DatasetEntry(
                name=dataset.name,
                fingerprint=info.dataset.fingerprint,
                n_users=dataset.n_users,
                n_items=dataset.n_items,
                n_train=len(dataset.train),
                modalities=dataset.modalities,
            ),
            dimension=int(items.shape[1]),
            index=index,
            opset=opset(tower),
            absent=absent,
            metrics=info.metrics,
            provenance=_provenance(checkpoint),
        )
    return manifest, certificate


def _check_comparable(checkpoint: Checkpoint, independent: Checkpoint) -> None:
    ours, theirs = checkpoint.info, independent.info
    if theirs.config.dvib.variant != "none":
        raise ExportError(f"{independent.folder}: a baseline is wanted, this run has DVIB {theirs.config.dvib.variant}")
    if theirs.dataset.fingerprint != ours.dataset.fingerprint:
        raise ExportError(f"{independent.folder}: the baseline was trained on other data than {checkpoint.folder}")
    if theirs.config.model_name != ours.config.model_name:
        raise ExportError(
            f"{independent.folder}: the baseline is a {theirs.config.model_name}, wanted {ours.config.model_name}"
        )
