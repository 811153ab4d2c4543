"""From a checkpoint to a bundle, or to nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export import bundle, strip
from export.artefacts import (
    FullGraphs,
    full_graph_onnx,
    full_graph_outline,
    item_tower_onnx,
    model_scores,
    provenance,
    seen_items,
    user_tower_onnx,
    write_full_graphs,
    write_rows,
)
from export.certificate import Certificate, GraphFacts, PathParity, judge
from export.certificate_text import render
from export.index import build_index, exact_over, read_index
from export.index_search import sample_users
from export.index_tuning import IndexChoice
from export.manifest import DatasetEntry, IndexEntry, Manifest
from export.measure import write_measurements
from export.onnx_canonical import opset
from export.onnx_graph import GraphTooLargeError
from export.parity import Scores, TowersAndIndex, compare, onnx_scores
from export.removed import removed_from
from export.writing import write_array
from training.checkpoint import Checkpoint
from training.common.errors import ExportError
from training.common.folders import atomic_folder
from training.models.base import Recommender
from training.tensor_files import disk_errors

Stage = Callable[[str], None]
"""Called with the name of each stage as it begins."""


class ProofFailedError(ExportError):
    """A proof does not hold; no bundle is written."""


def certify(
    checkpoint: Checkpoint,
    reference: Scores,
    written: FullGraphs,
    folder: Path,
    index: IndexEntry,
    independent: Checkpoint | None = None,
) -> Certificate:
    """Make the certificate of the files that ``build_bundle`` has put into a folder.

    Args:
        checkpoint: What was exported.
        reference: The trained model's scores.
        written: The forms of the full graph, ``model.onnx`` among them unless it is too large.
        folder: Holds ``user_tower.onnx``, ``items.faiss`` and ``items.npy``.
        index: The manifest's entry of the index.
        independent: A baseline trained on the same data by itself; without it, a fresh one with other initial values.
    """
    learned = sorted(f"model.{name}" for name in checkpoint.model)
    items = np.load(folder / bundle.ITEMS, allow_pickle=False)
    stored = read_index(memoryview((folder / bundle.INDEX).read_bytes()), index, *items.shape)
    towers = TowersAndIndex((folder / bundle.USER_TOWER).read_bytes(), exact_over(stored, items))
    sizes = checkpoint.dataset.n_users, checkpoint.dataset.n_items
    paths = dict(written.paths)
    if written.outline is None:
        data = (folder / bundle.MODEL_ONNX).read_bytes()
        paths |= {
            "onnx": onnx_scores(data, *sizes),
            "onnx_unfolded": onnx_scores(data, *sizes, optimised=False),
        }
    else:
        data = written.outline
    parity = compare(reference, paths, towers, *sizes)
    del paths
    large = written.outline is not None
    # One baseline at a time: a model brings the features with it.
    transplanted = _facts(strip.plain_model(checkpoint, transplant=True), learned, large)
    if independent is None:
        source = "baseline with initial values, never trained"
        other = _facts(strip.plain_model(checkpoint, transplant=False), learned, large)
    else:
        source = "baseline trained independently"
        other = _facts(strip.plain_model(independent, transplant=True), learned, large)
    facts = (GraphFacts.of(data, learned, outline=large), transplanted, other)
    made_with = provenance(checkpoint)
    return Certificate(
        model=checkpoint.info.config.model_name,
        variant=checkpoint.info.config.dvib.variant,
        dataset=checkpoint.dataset.name,
        dataset_fingerprint=checkpoint.info.dataset.fingerprint,
        onnxruntime=str(made_with["version.onnxruntime"]),
        learned=learned,
        exported=facts[0],
        transplanted=facts[1],
        independent=facts[2],
        independent_source=source,
        parity={name: PathParity.of(agreement) for name, agreement in parity.items()},
        removed=removed_from(checkpoint, data),
        proofs=judge(*facts, parity),
    )


def _facts(baseline: Recommender, learned: list[str], large: bool) -> GraphFacts:
    """Export a baseline and look at its graph, or at the outline of one that is too large for a file."""
    graph = full_graph_outline(baseline) if large else full_graph_onnx(baseline)
    return GraphFacts.of(graph, learned, outline=large)


def build_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    independent: Checkpoint | None = None,
    choice: IndexChoice | None = None,
    on_stage: Stage = lambda _: None,
) -> tuple[Manifest, Certificate]:
    """Export a checkpoint into a certified bundle.

    Args:
        checkpoint: From ``training.checkpoint.load_checkpoint``.
        out: The bundle's folder; an existing one is replaced in a single step.
        independent: A baseline of the same model, trained by itself on the same data, for the blanked proof.
        choice: Which index over the items; flat if left out.
        on_stage: Told what happens.

    Returns:
        Manifest and certificate as written.

    Raises:
        ExportError: The baseline does not belong to the checkpoint, ``out`` holds something that is no bundle, or the
            index cannot be made or falls short of its recall.
        ProofFailedError: A proof does not hold; nothing is written.
        OSError: The file system refuses, for example because the disk is full; nothing is written.
    """
    if independent is not None:
        _check_comparable(checkpoint, independent)
    if out.exists() and not bundle.is_bundle(out):
        raise ExportError(f"{out} is no bundle and is not replaced; choose another --out")
    dataset, info = checkpoint.dataset, checkpoint.info
    with disk_errors(out), atomic_folder(out) as folder:
        on_stage("stripping")
        trained = strip.trained_objective(checkpoint)
        model = strip.strip(trained).eval()
        # The model within its objective, as it was trained, is the reference.
        reference = model_scores(trained.model)
        with torch.no_grad():
            user_vectors, item_vectors = (vectors.detach().clone() for vectors in model.vectors())
        on_stage("exporting the towers")
        tower = user_tower_onnx(user_vectors)
        (folder / bundle.USER_TOWER).write_bytes(tower)
        absent: dict[str, str] = {}
        try:
            item_tower = item_tower_onnx(model, dataset, info.config.data)
            if item_tower is None:
                absent[bundle.ITEM_TOWER] = model.no_item_encoder
            else:
                (folder / bundle.ITEM_TOWER).write_bytes(item_tower)
        except GraphTooLargeError as error:
            absent[bundle.ITEM_TOWER] = str(error)
        written = write_full_graphs(model, folder, dataset, on_stage)
        absent |= written.absent
        on_stage("indexing the items")
        items = np.ascontiguousarray(item_vectors.numpy())
        write_array(folder / bundle.ITEMS, items)
        users, seen = sample_users(dataset.n_users), seen_items(dataset)
        index = build_index(
            items, folder / bundle.INDEX, user_vectors.numpy()[users], choice, [seen.of(user) for user in users]
        )
        write_rows(dataset, folder)
        on_stage("proving")
        certificate = certify(checkpoint, reference, written, folder, index, independent)
        failed = sorted(name for name, held in certificate.proofs.items() if not held)
        if failed:
            raise ProofFailedError(
                f"{checkpoint.folder}: the export is not the baseline's: proof {', '.join(failed)} failed "
                f"({certificate.explain(failed[0])}); no bundle is written"
            )
        (folder / bundle.CERTIFICATE).write_text(certificate.model_dump_json(indent=2) + "\n", "utf-8")
        (folder / bundle.CERTIFICATE_TEXT).write_text(render(certificate), "utf-8")
        if written.outline is None:
            on_stage("measuring")
            write_measurements(folder / bundle.MODEL_ONNX, folder / bundle.MEASUREMENTS)
        manifest = bundle.write_manifest(
            folder,
            model=info.config.model_name,
            variant=info.config.dvib.variant,
            preset=info.config.preset,
            dataset=DatasetEntry(
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
            provenance=provenance(checkpoint),
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
    if _same_tensors(checkpoint.model, independent.model):
        raise ExportError(
            f"{independent.folder}: holds the same tensors as {checkpoint.folder}, wanted a run trained by itself; "
            "leave --baseline out"
        )


def _same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
