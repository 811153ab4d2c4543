from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.artefacts import full_graph_onnx
from tests.helpers_training import make_config, planted_blocks
from training.build import build_model, model_data
from training.common.errors import ConfigError, DataError
from training.data.dataset import Dataset
from training.models.base import Batch, Hidden, Latent, ModelConfig, Rows
from training.models.freedom import FREEDOM, item_graph, modality_shares
from training.optimiser import RowAdam

DATASET = planted_blocks(n_users=10, n_items=40)
USERS = torch.tensor([4, 0, 4, 9, 9, 9])
POSITIVES = torch.tensor([8, 0, 10, 3, 3, 5])
NEGATIVES = torch.tensor([3, 7, 3, 0, 0, 8])
BATCH = Batch.of(USERS, POSITIVES, NEGATIVES)
ROWS = Rows(torch.tensor([3, 1]), torch.tensor([7, 0, 12]))
SMALL = ("model.dimension=8", "model.neighbours=4", "model.dropped=0.6", "model.modality_loss=0.3")


def make_model(*overrides: str, dataset: Dataset = DATASET, seed: int = 1) -> FREEDOM:
    model = cast("FREEDOM", build_model(make_config("none", *SMALL, *overrides, model="freedom"), dataset))
    model.begin_epoch(1, torch.Generator().manual_seed(seed))
    return model


def edges_of(model: FREEDOM) -> list[tuple[int, int]]:
    assert model.masked_graph is not None
    users, items = model.masked_graph.user_item_edges(len(model.users)).tolist()
    return list(zip(users, items, strict=True))


def all_edges() -> list[tuple[int, int]]:
    return list(zip(DATASET.train.users.tolist(), DATASET.train.items.tolist(), strict=True))


def dense_item_graph(k: int, weights: dict[str, float]) -> Tensor:
    """S from its definition: for each item the k largest cosines of each modality."""
    total = torch.zeros(DATASET.n_items, DATASET.n_items)
    for name, weight in weights.items():
        unit = torch.nn.functional.normalize(torch.from_numpy(DATASET.features[name].copy()))
        best = (unit @ unit.T).topk(k, dim=1).indices
        total += weight / k * torch.zeros_like(total).scatter_(1, best, 1.0)
    return total


def naive_vectors(
    model: FREEDOM, edges: list[tuple[int, int]], noise: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The module's formulas on dense matrices; ``noise`` [I, d] is added to h after each of the item graph's steps."""
    n_users, n = len(model.users), len(model.users) + len(model.items)
    adjacency = torch.zeros(n, n)
    for user, item in edges:
        adjacency[user, n_users + item] = adjacency[n_users + item, user] = 1
    degrees = adjacency.sum(1) + 1e-7
    adjacency = adjacency / (degrees.unsqueeze(1) * degrees.unsqueeze(0)).sqrt()
    layers = [torch.cat([model.users, model.items])]
    for _ in range(model.config.layers):
        layers.append(adjacency @ layers[-1])
    mean = torch.stack(layers).mean(0)
    similar, h = dense_item_graph(model.config.neighbours, {"image": 0.1, "text": 0.9}), model.items * 1
    for step in range(model.config.item_layers):
        h = similar @ h
        if noise is not None:
            h = h + noise[step]
    return mean[:n_users], mean[n_users:] + h


def naive_bpr(users: Tensor, items: Tensor) -> Tensor:
    margins = (users[USERS] * (items[POSITIVES] - items[NEGATIVES])).sum(1)
    return -torch.log(torch.sigmoid(margins)).mean()


def naive_loss(model: FREEDOM, edges: list[tuple[int, int]]) -> Tensor:
    users, items = naive_vectors(model, edges)
    loss = naive_bpr(users, items)
    for name in ("image", "text"):
        projection = getattr(model, f"projection_{name}")
        projected = getattr(model, f"features_{name}") @ projection.weight.T + projection.bias
        loss = loss + model.config.modality_loss * naive_bpr(users, projected)
    return loss


def our_loss(model: FREEDOM, batch: Batch = BATCH) -> Tensor:
    terms = model.loss(model.represent(model.hidden(batch.rows)), batch)
    return torch.stack(list(terms.values())).sum()


# The item–item graph.


def test_item_graph_worked_by_hand() -> None:
    # Text: items 0 and 1 point one way, 2 and 3 another. Image: 0 and 2 one way, 1 and 3 another. k = 2.
    text = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.1, 1.0], [0.0, 3.0]])
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    graph = item_graph({"image": image, "text": text}, {"image": 0.1, "text": 0.9}, 2)
    dense = torch.zeros(4, 4).index_put((graph.targets, graph.sources), graph.weights)
    # The diagonal is in both graphs: (.1 + .9) / 2.
    assert torch.allclose(
        dense,
        torch.tensor([[0.5, 0.45, 0.05, 0.0], [0.45, 0.5, 0.0, 0.05], [0.05, 0.0, 0.5, 0.45], [0.0, 0.05, 0.45, 0.5]]),
    )


@pytest.mark.parametrize("k", [1, 4, 10, 99])
def test_every_weight_of_a_single_modality_is_one_over_k(k: int) -> None:
    features = {"text": torch.from_numpy(DATASET.features["text"].copy())}
    graph = item_graph(features, {"text": 0.9, "image": 0.1}, k)
    assert torch.allclose(graph.weights, torch.full((40 * min(k, 40),), 1 / min(k, 40)), atol=1e-6)


@pytest.mark.parametrize("modalities", [("image",), ("image", "text"), ("audio", "image", "text")])
def test_rows_of_the_item_graph_sum_to_one(modalities: tuple[str, ...]) -> None:
    model = make_model(dataset=planted_blocks(n_users=10, n_items=40, modalities=modalities))
    sums = torch.zeros(40).index_add(0, model.item_graph.targets, model.item_graph.weights)
    assert torch.allclose(sums, torch.ones(40), atol=1e-6)


def test_item_graph_equals_the_dense_definition() -> None:
    graph = make_model().item_graph
    dense = torch.zeros(40, 40).index_put((graph.targets, graph.sources), graph.weights)
    assert torch.allclose(dense, dense_item_graph(4, {"image": 0.1, "text": 0.9}), atol=1e-7)


def test_a_modality_without_weight_gets_an_equal_share() -> None:
    weights = {"image": 0.1, "text": 0.9}
    assert modality_shares(["text"], weights) == {"text": 1.0}
    assert modality_shares(["image", "text"], weights) == pytest.approx(weights)
    assert modality_shares(["audio", "image", "text"], weights) == pytest.approx(
        {"audio": 1 / 3, "image": 2 / 30, "text": 18 / 30}
    )
    assert modality_shares(["audio", "video"], weights) == {"audio": 0.5, "video": 0.5}
    assert modality_shares(["image", "text"], {"image": 0.0, "text": 2.0}) == {"image": 0.0, "text": 1.0}
    with pytest.raises(ConfigError, match=r"model.modality_weights: image, text cannot all have the weight 0"):
        modality_shares(["text", "image"], {"image": 0.0, "text": 0.0})


def test_a_modality_of_weight_zero_has_no_edges() -> None:
    model = make_model("model.modality_weights={image: 0, text: 1}")
    assert len(model.item_graph.weights) == 40 * 4


# The user–item graph.


def test_each_epoch_masks_the_graph_anew_and_by_the_generator() -> None:
    model = make_model()
    kept = []
    for seed in (1, 2, 1):
        model.begin_epoch(7, torch.Generator().manual_seed(seed))
        kept.append(edges_of(model))
        assert len(set(kept[-1])) == len(kept[-1]) == int(len(all_edges()) * 0.4) == 48
        assert set(kept[-1]) < set(all_edges())
    assert kept[0] == kept[2] != kept[1]


def test_every_epoch_masks_by_degree() -> None:
    edges = [(0, item) for item in range(12)] + [(user, 0) for user in range(1, 12)]
    lone = [(user, user) for user in range(1, 12)]
    users, items = np.array([*edges, *lone]).T
    data = replace(
        model_data(planted_blocks(n_users=12, n_items=40)), n_users=12, edges=torch.from_numpy(np.stack([users, items]))
    )
    config = FREEDOM.Config.model_validate({"dropped": 0.5, "modality_loss": 0})
    model = FREEDOM(config, data, torch.Generator().manual_seed(0))
    for epoch in (1, 2):
        generator, hubs, stayed = torch.Generator().manual_seed(0), 0, 0
        for _ in range(200):
            model.begin_epoch(epoch, generator)
            hubs += (0, 0) in edges_of(model)
            stayed += sum(edge in edges_of(model) for edge in lone)
        # Uniformly, each edge would stay in half of the draws.
        assert hubs < 60
        assert stayed / (11 * 200) > 0.6


def test_nothing_dropped_is_the_full_graph() -> None:
    model = make_model("model.dropped=0")
    assert model.masked_graph is None
    for left, right in zip(model.towers(model.represent(model.hidden(Rows()))), model.vectors(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


# Loss, gradient and ranking.


@pytest.mark.parametrize("site", ["graph", "projected"])
@pytest.mark.parametrize("item_layers", [1, 2, 3])
def test_loss_and_gradients_equal_a_dense_reference(item_layers: int, site: str) -> None:
    model = make_model(f"model.item_layers={item_layers}", f"model.inject_at={site}")
    names, values = zip(*model.named_parameters(), strict=True)
    for batch in (BATCH, Batch.of(USERS, POSITIVES, NEGATIVES, all_items=True)):
        ours, naive = our_loss(model, batch), naive_loss(model, edges_of(model))
        assert ours.item() == pytest.approx(naive.item(), rel=1e-6)
        grads = [torch.autograd.grad(loss, values) for loss in (ours, naive)]
        for name, left, right in zip(names, *grads, strict=True):
            assert torch.allclose(left.to_dense(), right, rtol=1e-4, atol=1e-7), name


def test_feature_tables_get_sparse_gradients_of_the_batchs_items() -> None:
    model = make_model()
    our_loss(model).backward()  # type: ignore[no-untyped-call]
    for name in model.modalities:
        gradient = getattr(model, f"features_{name}").grad
        assert gradient.is_sparse
        assert sorted(gradient._indices()[0].tolist()) == [0, 3, 5, 7, 8, 10]


def test_the_term_of_the_modalities_is_weighted_and_optional() -> None:
    latent = make_model().represent(make_model().hidden(BATCH.rows))
    terms = [make_model(f"model.modality_loss={weight}").loss(latent, BATCH) for weight in (0.3, 0.6)]
    assert terms[1]["modalities"].item() == pytest.approx(2 * terms[0]["modalities"].item())
    without = make_model("model.modality_loss=0")
    assert sorted(without.state_dict()) == ["items", "users"]
    assert set(without.loss(without.represent(without.hidden(BATCH.rows)), BATCH)) == {"bpr"}


def test_fixed_feature_tables_are_neither_trained_nor_stored() -> None:
    model = make_model("model.trained_features=false")
    projections = [f"projection_{name}.{part}" for name in ("image", "text") for part in ("bias", "weight")]
    assert sorted(model.state_dict()) == ["items", *projections, "users"]
    assert our_loss(model).item() == pytest.approx(our_loss(make_model()).item(), rel=1e-6)


def test_training_leaves_the_features_it_was_given_alone() -> None:
    data = model_data(DATASET)
    model = FREEDOM(make_model().config, data, torch.Generator())
    model.begin_epoch(1, torch.Generator())
    optimiser = RowAdam(model.parameters(), lr=0.1)
    our_loss(model).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    for name, matrix in DATASET.features.items():
        assert np.array_equal(data.features[name].numpy(), matrix)
        assert not np.array_equal(getattr(model, f"features_{name}").detach().numpy(), matrix)


@pytest.mark.parametrize("item_layers", [1, 2])
@pytest.mark.parametrize("site", ["graph", "projected"])
def test_ranking_uses_the_full_graph_and_no_features(site: str, item_layers: int) -> None:
    model = make_model(f"model.inject_at={site}", f"model.item_layers={item_layers}")
    for name in model.modalities:
        for parameter in (getattr(model, f"features_{name}"), *getattr(model, f"projection_{name}").parameters()):
            torch.nn.init.constant_(parameter, torch.nan)
    users, items = model.vectors()
    expected = naive_vectors(model, all_edges())
    assert torch.allclose(users, expected[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(items, expected[1], rtol=1e-4, atol=1e-6)
    model.eval()
    latent = model.represent(model.hidden(ROWS))
    assert torch.equal(latent.users, users[ROWS.users])
    assert torch.equal(latent.items, items[ROWS.items])
    assert not latent.modalities


# Sites.


def test_sites_and_what_they_reach() -> None:
    graph, deep = make_model(), make_model("model.item_layers=2")
    projected = make_model("model.inject_at=projected")
    for model, shapes in (
        (graph, {"items": (3, 8)}),
        (deep, {"layer_1": (40, 8), "layer_2": (3, 8)}),
        (projected, {"image": (3, 8), "text": (3, 8)}),
    ):
        hidden = model.hidden(ROWS)
        assert {name: tuple(site.shape) for name, site in hidden.sites.items()} == shapes
        assert model.site_widths == dict.fromkeys(shapes, 8)
        clean, moved = (model.represent(some) for some in (hidden, shifted(hidden)))
        assert moved.users is clean.users
        # What no site reaches is the very same tensor: a distillation of features must not compare it with itself.
        assert (moved.items is clean.items) is torch.equal(moved.items, clean.items) is (model is projected)
        assert set(clean.modalities) == ({"image", "text"} if model is projected else set())
        for name in clean.extra:
            assert moved.extra[name] is clean.extra[name]


def shifted(hidden: Hidden) -> Hidden:
    """Add a fixed noise to every site."""
    noise = torch.Generator().manual_seed(3)
    sites = {name: site + torch.randn(site.shape, generator=noise) for name, site in hidden.sites.items()}
    return replace(hidden, sites=sites)


@pytest.mark.parametrize("item_layers", [1, 2, 3])
def test_noise_enters_after_each_step_along_the_item_graph(item_layers: int) -> None:
    model = make_model(f"model.item_layers={item_layers}")
    clean, moved = (hidden := model.hidden(Rows())), shifted(hidden)
    noise = [moved.sites[name] - clean.sites[name] for name in model.steps]
    expected = naive_vectors(model, edges_of(model), noise)
    for rows in (Rows(), ROWS):
        sites = dict(moved.sites)
        sites[model.steps[-1]] = sites[model.steps[-1]] if rows.items is None else sites[model.steps[-1]][rows.items]
        latent: Latent = model.represent(replace(model.hidden(rows), sites=sites))
        naive = expected[1] if rows.items is None else expected[1][rows.items]
        assert torch.allclose(latent.items, naive, rtol=1e-4, atol=1e-5)


def test_projected_sites_are_what_the_modalities_terms_read() -> None:
    model = make_model("model.inject_at=projected")
    hidden = model.hidden(BATCH.rows)
    clean, moved = (model.loss(model.represent(some), BATCH) for some in (hidden, shifted(hidden)))
    assert torch.equal(clean["bpr"], moved["bpr"])
    assert not torch.equal(clean["modalities"], moved["modalities"])


# What is refused.


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"inject_at=projected needs model.modality_loss above 0, got 0"):
        make_model("model.inject_at=projected", "model.modality_loss=0")
    with pytest.raises(ConfigError, match="FREEDOM wants a FreedomConfig, got ModelConfig"):
        FREEDOM(ModelConfig(), model_data(DATASET), torch.Generator())
    with pytest.raises(DataError, match="FREEDOM needs features of at least one modality, the data set has none"):
        FREEDOM(make_model().config, replace(model_data(DATASET), features={}), torch.Generator())


def test_initial_values() -> None:
    model = make_model("model.dimension=64", "model.modality_loss=0.1")
    for table in (model.users, model.items):
        bound = (6 / sum(table.shape)) ** 0.5
        assert table.abs().max().item() <= bound
        assert table.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    for name, matrix in DATASET.features.items():
        assert np.array_equal(getattr(model, f"features_{name}").detach().numpy(), matrix)
        # PyTorch's own: both parts uniform within ±1/√inputs.
        bound = matrix.shape[1] ** -0.5
        for values in getattr(model, f"projection_{name}").parameters():
            assert values.abs().max().item() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


# Export.


@pytest.mark.parametrize("item_layers", [1, 2])
def test_the_exported_graph_scores_alike_and_holds_no_features(item_layers: int) -> None:
    model = make_model(f"model.item_layers={item_layers}").eval()
    data = full_graph_onnx(model)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    scores = session.run(None, {name: np.arange(10)})[0]
    with torch.no_grad():
        users, items = model.vectors()
    assert np.allclose(scores, (users @ items.T).numpy(), rtol=1e-4, atol=1e-6)
    for matrix in DATASET.features.values():
        assert matrix.tobytes() not in data
