from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.artefacts import item_tower_onnx
from export.graphs import ItemTower
from tests.helpers_training import make_config, planted_blocks
from training.build import build_model, load_model, model_data
from training.checkpoint import load_checkpoint
from training.data.options import DataOptions
from training.models.vbpr import VBPR
from training.scaling import Scaling, scalings_of
from training.trainer import Trainer

DRAW = np.random.default_rng(0)
# Columns of unlike means and spreads, one of them constant (with a value that no binary fraction is).
MATRIX = (DRAW.standard_normal((3000, 4)) * [1.0, 30.0, 0.01, 0.0] + [5.0, -200.0, 0.0, 0.1]).astype(np.float32)


def test_global_scaling_centres_columns_and_divides_by_one_deviation() -> None:
    scaled = Scaling.of(MATRIX, "global").apply(MATRIX)
    exact = MATRIX.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    np.testing.assert_allclose(scaled, centred / centred.std(), atol=1e-5)
    assert scaled.std() == pytest.approx(1, rel=1e-4)
    assert len(set(np.round(scaled[:, :3].std(axis=0), 4))) == 3  # columns keep their proportions


def test_scaling_per_dimension_standardises_each_column_and_blanks_constant_ones() -> None:
    scaled = Scaling.of(MATRIX, "per_dimension").apply(MATRIX)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 1, 0], atol=1e-4)
    assert bool((scaled[:, 3] == 0).all())


@pytest.mark.parametrize("kind", ["global", "per_dimension"])
def test_features_that_are_all_equal_become_zero(kind: Any) -> None:
    scaled = Scaling.of(np.full((7, 3), 0.1, np.float32), kind).apply(np.full((7, 3), 0.1, np.float32))
    assert bool((scaled == 0).all())


@pytest.mark.parametrize("kind", ["global", "per_dimension"])
def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    whole = Scaling.of(MATRIX, kind)
    monkeypatch.setattr("training.scaling._ROWS_AT_ONCE", 7)
    parts = Scaling.of(MATRIX, kind)
    np.testing.assert_allclose(parts.factor, whole.factor, rtol=1e-6)
    np.testing.assert_array_equal(parts.offset, whole.offset)


def test_models_see_scaled_features_and_the_data_set_keeps_raw_ones() -> None:
    dataset = planted_blocks()
    before = {name: matrix.copy() for name, matrix in dataset.features.items()}
    raw = model_data(dataset, DataOptions())
    scaled = model_data(dataset, DataOptions(feature_scaling="global"))
    for name, matrix in dataset.features.items():
        np.testing.assert_array_equal(matrix, before[name])
        np.testing.assert_array_equal(raw.features[name].numpy(), matrix)
        exact = matrix.astype(np.float64)
        centred = exact - exact.mean(axis=0)
        np.testing.assert_allclose(scaled.features[name].numpy(), centred / centred.std(), atol=1e-5)
    # Each modality has its own scale: blowing one up changes nothing.
    loud = replace(dataset, features={**dataset.features, "text": 100 * dataset.features["text"]})
    again = model_data(loud, DataOptions(feature_scaling="global"))
    assert torch.allclose(again.features["text"], scaled.features["text"], atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "global", "per_dimension"])
def test_the_item_tower_takes_raw_features(tmp_path: Path, kind: str) -> None:
    spread = {"text": np.array([[7, 1, 40, 1, 0, 3, 2]], np.float32), "image": np.array([[1, 2, 30, 4, 5]], np.float32)}
    plain = planted_blocks()
    features = {name: (matrix + spread[name]) * spread[name] for name, matrix in plain.features.items()}
    dataset = replace(plain, features=features)
    config = make_config("none", "training.epochs=1", f"data.feature_scaling={kind}")
    Trainer(config, dataset, tmp_path / "run").fit()
    checkpoint = load_checkpoint(tmp_path / "run")
    for name, matrix in checkpoint.dataset.features.items():
        np.testing.assert_array_equal(matrix, features[name])  # a checkpoint keeps what the data set had
    model = cast("VBPR", load_model(checkpoint))
    known = [3, 17, 40]
    seen = model_data(checkpoint.dataset, checkpoint.info.config.data).features
    scalings = scalings_of(checkpoint.dataset, checkpoint.info.config.data)
    assert set(scalings) == (set() if kind == "none" else {"image", "text"})
    raw: list[NDArray[np.float32]] = [checkpoint.dataset.features[name][known] for name in ("image", "text")]
    with torch.no_grad():
        encoder = model.item_encoder(seen)
        expected = encoder({name: matrix[known] for name, matrix in seen.items()})
        tower = ItemTower(encoder, ("image", "text"), scalings)(*map(torch.from_numpy, raw))
        _, items = model.vectors()
    assert torch.allclose(tower, expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(tower[:, 8:], items[known, 8:], rtol=1e-5, atol=1e-5)  # as the model itself has them
    graph = item_tower_onnx(model, checkpoint.dataset, checkpoint.info.config.data)
    assert graph is not None
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vectors"], dict(zip(("image", "text"), raw, strict=True)))
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_scaling_belongs_to_the_configuration_of_a_run() -> None:
    dataset = planted_blocks()
    models = [
        cast("VBPR", build_model(make_config("none", f"data.feature_scaling={kind}"), dataset))
        for kind in ("none", "global")
    ]
    assert torch.equal(models[0].weight, models[1].weight)
    assert not torch.equal(models[0].features, models[1].features)
