"""``item_tower.onnx``: what it computes, against the model's formulas, torch and the model's own item vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.artefacts import full_graph_onnx, item_tower_onnx
from export.graphs import ItemTower
from tests.helpers_training import make_config, planted_blocks
from training.build import build_model, model_data
from training.config import RunConfig
from training.data.dataset import Dataset
from training.graph import light_gcn
from training.models import MODELS
from training.models.base import Recommender
from training.scaling import scalings_of

if TYPE_CHECKING:
    from training.models.freedom import FREEDOM

DATASET = planted_blocks(n_users=13, n_items=41)
Matrices = Mapping[str, NDArray[np.float32]]
FREEDOMS = [(), ("model.item_layers=3",), ("model.neighbours=99",), ("data.feature_scaling=global",)]


def configured(name: str, *overrides: str) -> RunConfig:
    small = ("model.neighbours=4",) if name == "freedom" else ()
    return make_config("none", *small, *overrides, model=name)


def built(config: RunConfig, dataset: Dataset = DATASET) -> tuple[Recommender, bytes]:
    """A model with its initial values, and its item tower."""
    model = build_model(config, dataset).eval()
    tower = item_tower_onnx(model, dataset, config.data)
    assert tower is not None
    return model, tower


def run(tower: bytes, features: Matrices, *, optimised: bool = True) -> NDArray[np.float64]:
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    opened: Any = onnxruntime.InferenceSession(tower, options, providers=["CPUExecutionProvider"])
    return np.asarray(opened.run(["vectors"], dict(features))[0], np.float64)


def unseen(count: int, seed: int = 0) -> Matrices:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((count, width), np.float32) for name, width in DATASET.modalities.items()}


def everything() -> Matrices:
    """All items of the data set, and as many new ones."""
    return {name: np.concatenate([DATASET.features[name], matrix]) for name, matrix in unseen(41).items()}


def similarities(features: Matrices, name: str) -> NDArray[np.float64]:
    left, right = (matrix[name].astype(np.float64) for matrix in (features, DATASET.features))
    cosines: NDArray[np.float64] = left @ right.T / np.outer(*(np.linalg.norm(side, axis=1) for side in (left, right)))
    return cosines


def assert_close(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= 2e-6 * largest).all()


def test_the_data_has_no_ties() -> None:
    """Between the fourth and the fifth nearest: else torch and ONNX Runtime may choose different neighbours."""
    for name in DATASET.features:
        ordered = np.sort(similarities(everything(), name), axis=1)
        assert (ordered[:, -4] - ordered[:, -5]).min() > 1e-5


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *(("freedom", overrides) for overrides in FREEDOMS),
        ("vbpr", ()),
        ("vbpr", ("model.new_item_id=zero",)),
        ("vbpr", ("data.feature_scaling=per_dimension",)),
    ],
)
def test_onnx_equals_torch_for_every_item(name: str, overrides: tuple[str, ...], optimised: bool) -> None:
    config = configured(name, *overrides)
    model, tower = built(config)
    features = everything()
    encoder = model.item_encoder(model_data(DATASET, config.data).features)
    assert encoder is not None
    with torch.no_grad():
        module = ItemTower(encoder, tuple(DATASET.modalities), scalings_of(DATASET, config.data))
        expected = module(*(torch.from_numpy(features[name]) for name in DATASET.modalities))
    assert_close(run(tower, features, optimised=optimised), expected.double().numpy())


def averaged(
    model: Recommender, table: NDArray[np.float64], features: Matrices, k: int, shares: Mapping[str, float]
) -> NDArray[np.float64]:
    """The mean of ``table`` over the k nearest, item by item."""
    vectors = np.zeros((len(features["text"]), table.shape[1]))
    for name, share in shares.items():
        for row, near in enumerate(similarities(features, name)):
            for neighbour in sorted(range(41), key=lambda item: -near[item])[:k]:
                vectors[row] += share / k * table[neighbour]
    return vectors


def graph_mean(model: Recommender) -> NDArray[np.float64]:
    """ī of every item: the mean over the layers of LightGCN."""
    freedom = cast("FREEDOM", model)
    with torch.no_grad():
        layers = light_gcn(freedom.graph, torch.cat([freedom.users, freedom.items]), freedom.config.layers)
    return np.asarray(layers[DATASET.n_users :].double())


@pytest.mark.parametrize("item_layers", [1, 3])
def test_freedom_averages_the_vectors_of_the_nearest_items(item_layers: int) -> None:
    model, tower = built(configured("freedom", f"model.item_layers={item_layers}"))
    with torch.no_grad():
        _, items = model.vectors()
    mean, h = graph_mean(model), np.asarray(cast("FREEDOM", model).items.detach().double())
    shares = {"image": 0.1, "text": 0.9}
    for _ in range(item_layers - 1):
        h = averaged(model, h, DATASET.features, 4, shares)
    assert_close(run(tower, unseen(9)), averaged(model, mean + h, unseen(9), 4, shares))
    # A known item's features find that item and its own neighbours: its h is the model's own.
    own_h = items.double().numpy() - mean
    instead_of_mean = averaged(model, mean, DATASET.features, 4, shares)
    assert_close(run(tower, DATASET.features), own_h + instead_of_mean)


def test_a_modality_of_weight_zero_places_nothing() -> None:
    config = configured("freedom", "model.modality_weights={image: 0.0, text: 1.0}")
    _, tower = built(config)
    features = unseen(5)
    other = {**features, "image": unseen(5, seed=1)["image"]}
    assert np.array_equal(run(tower, features), run(tower, other))
    assert not np.array_equal(run(tower, features), run(tower, {**features, "text": unseen(5, seed=1)["text"]}))


def test_of_equally_near_items_the_lower_row_counts() -> None:
    """As ``knn_graph`` has it; exactly representable features, so that the similarities are equal to the last bit."""
    draw = np.random.default_rng(0)
    features = {"text": np.eye(4, dtype=np.float32)[draw.integers(4, size=41)]}
    dataset = replace(DATASET, features=features)
    model, tower = built(configured("freedom", "model.neighbours=3"), dataset)
    vectors = run(tower, {"text": np.eye(4, dtype=np.float32)})
    table = graph_mean(model) + np.asarray(cast("FREEDOM", model).items.detach().double())
    for kind in range(4):
        lowest = np.flatnonzero(features["text"][:, kind])[:3]
        assert_close(vectors[kind][None], table[lowest].mean(axis=0)[None])


def test_only_the_item_tower_holds_freedoms_features() -> None:
    model, tower = built(configured("freedom"))
    graph = full_graph_onnx(model)
    for matrix in DATASET.features.values():
        unit = torch.nn.functional.normalize(torch.from_numpy(matrix.copy())).numpy()
        row = np.linspace(0, 40, 5, dtype=int)
        assert all(matrix[place].tobytes() not in graph and unit[place].tobytes() not in graph for place in row)
    tables = 4 * 41 * (sum(DATASET.modalities.values()) + 8)
    assert tables <= len(tower) < tables + 8_000


@pytest.mark.parametrize("name", ["freedom", "vbpr"])
def test_what_is_learned_later_does_not_reach_an_encoder(name: str) -> None:
    model = build_model(configured(name), DATASET).eval()
    features = model_data(DATASET).features
    with torch.no_grad():
        encoder = model.item_encoder(features)
        assert encoder is not None
        before = encoder(features).clone()
        for parameter in model.parameters():
            parameter.add_(1)
        assert torch.equal(encoder(features), before)
        again = model.item_encoder(features)
        assert again is not None
        assert not torch.allclose(again(features), before)
    assert not list(encoder.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_an_item_tower_or_says_why_not(name: str) -> None:
    model = build_model(configured(name), DATASET).eval()
    with torch.no_grad():
        encoder = model.item_encoder(model_data(DATASET).features)
    reason = model.no_item_encoder
    assert (encoder is not None) == (name in {"vbpr", "freedom"})
    if encoder is None:
        assert item_tower_onnx(model, DATASET, configured(name).data) is None
        assert type(model).__name__ in reason
        assert "\n" not in reason
        others = {MODELS[other].no_item_encoder for other in MODELS if other != name}
        assert reason not in others
