"""What the exported graphs compute, against VBPR in NumPy from the checkpoint's own files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from export import bundle
from tests.helpers_export import model_of, numpy_vectors
from training.checkpoint import BEST, MODEL
from training.data.dataset import Dataset

Batch = list[int]
BATCHES: list[Batch] = [[4], [22, 0], [5, 5, 1, 22, 0, 3, 2], list(range(23))]
SIZES = [f"batch of {len(batch)}" for batch in BATCHES]


def open_graph(folder: Path, name: str) -> Any:
    return onnxruntime.InferenceSession((folder / name).read_bytes(), providers=["CPUExecutionProvider"])


def ports(model: onnx.ModelProto) -> dict[str, tuple[int, list[str | int]]]:
    """Return name → element type and shape of inputs and outputs, as declared."""
    return {
        entry.name: (
            entry.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim],
        )
        for entry in (*model.graph.input, *model.graph.output)
    }


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


def test_signatures(adaptive_bundle: Path, dataset: Dataset) -> None:
    users, scores, vectors = ["batch"], ["batch", 41], ["batch", 16]
    kinds = onnx.TensorProto
    assert ports(model_of(adaptive_bundle / bundle.MODEL_ONNX)) == {
        "users": (kinds.INT64, users),
        "scores": (kinds.FLOAT, scores),
    }
    assert ports(model_of(adaptive_bundle / bundle.USER_TOWER)) == {
        "users": (kinds.INT64, users),
        "vectors": (kinds.FLOAT, vectors),
    }
    assert dataset.modalities == {"image": 5, "text": 7}
    assert ports(model_of(adaptive_bundle / bundle.ITEM_TOWER)) == {
        "image": (kinds.FLOAT, ["batch", 5]),
        "text": (kinds.FLOAT, ["batch", 7]),
        "vectors": (kinds.FLOAT, vectors),
    }
    for name in (bundle.MODEL_ONNX, bundle.USER_TOWER, bundle.ITEM_TOWER):
        onnx.checker.check_model(model_of(adaptive_bundle / name), full_check=True)


def test_the_full_graph_is_not_frozen(adaptive_bundle: Path, adaptive_run: Path) -> None:
    """Its initialisers are the checkpoint's tensors and the features, bit for bit: no item vector is baked in."""
    graph = model_of(adaptive_bundle / bundle.MODEL_ONNX).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    learned = {f"model.{name}": array for name, array in load_file(adaptive_run / BEST / MODEL).items()}
    assert arrays.keys() == {*learned, "model.features"}
    for name, array in learned.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


@pytest.mark.parametrize("batch", BATCHES, ids=SIZES)
def test_the_full_graph_scores_like_numpy(batch: Batch, adaptive_bundle: Path, adaptive_run: Path) -> None:
    users, items = numpy_vectors(adaptive_run)
    (scores,) = open_graph(adaptive_bundle, bundle.MODEL_ONNX).run(["scores"], {"users": np.array(batch)})
    assert_close(scores, users[batch] @ items.T)


@pytest.mark.parametrize("batch", BATCHES, ids=SIZES)
def test_the_user_tower_looks_up_the_same_vectors(batch: Batch, adaptive_bundle: Path, adaptive_run: Path) -> None:
    (vectors,) = open_graph(adaptive_bundle, bundle.USER_TOWER).run(["vectors"], {"users": np.array(batch)})
    np.testing.assert_array_equal(vectors, numpy_vectors(adaptive_run)[0][batch].astype(np.float32), strict=True)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_item_tower_places_unseen_items(rows: int, adaptive_bundle: Path, adaptive_run: Path) -> None:
    """[mean Q ‖ W f + b], and every input is told apart by its name."""
    draw = np.random.default_rng(rows)
    features = {
        name: draw.standard_normal((rows, width)).astype(np.float32) for name, width in (("text", 7), ("image", 5))
    }
    (vectors,) = open_graph(adaptive_bundle, bundle.ITEM_TOWER).run(["vectors"], features)
    learned = load_file(adaptive_run / BEST / MODEL)
    mean = np.tile(learned["items"].astype(np.float64).mean(axis=0), (rows, 1))
    joined = np.hstack([features["image"], features["text"]]).astype(np.float64)
    assert_close(vectors, np.hstack([mean, joined @ learned["weight"].T.astype(np.float64) + learned["bias"]]))


def test_the_item_tower_of_a_known_items_features_gives_its_feature_half(
    adaptive_bundle: Path, adaptive_run: Path, dataset: Dataset
) -> None:
    (vectors,) = open_graph(adaptive_bundle, bundle.ITEM_TOWER).run(["vectors"], dict(dataset.features))
    items = numpy_vectors(adaptive_run)[1]
    assert_close(vectors[:, 8:], items[:, 8:])


def test_item_vectors_and_index(adaptive_bundle: Path, adaptive_run: Path) -> None:
    items = np.load(adaptive_bundle / bundle.ITEMS)
    assert_close(items, numpy_vectors(adaptive_run)[1])
    index = faiss.read_index(str(adaptive_bundle / bundle.INDEX))
    assert isinstance(index, faiss.IndexFlatIP)
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), items, strict=True)


def test_the_torchscript_file_scores_alike(adaptive_bundle: Path, adaptive_run: Path) -> None:
    """The one place that loads such a file; this test made it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.load` is (deprecated|not supported)")
        module = torch.jit.load(adaptive_bundle / bundle.TORCHSCRIPT)  # type: ignore[no-untyped-call]
    users, items = numpy_vectors(adaptive_run)
    for batch in BATCHES:
        with torch.no_grad():
            assert_close(module(torch.tensor(batch)).numpy(), users[batch] @ items.T)
