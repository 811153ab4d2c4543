from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.helpers_training import make_config, make_dataset, planted_blocks
from training.build import build_model, model_data
from training.common.errors import ConfigError
from training.data.dataset import Dataset
from training.models.base import Batch, Latent, ModelConfig, Rows
from training.models.layergcn import LayerGCN

DATASET = planted_blocks(n_users=10, n_items=40)
USERS = torch.tensor([4, 0, 4, 9, 9, 9])
POSITIVES = torch.tensor([8, 0, 10, 3, 3, 5])
NEGATIVES = torch.tensor([3, 7, 3, 0, 0, 8])
BATCH = Batch.of(USERS, POSITIVES, NEGATIVES)


def make_model(*overrides: str, dataset: Dataset = DATASET, epoch: int = 1, seed: int = 1) -> LayerGCN:
    config = make_config("none", "model.dimension=8", *overrides, model="layergcn")
    model = cast("LayerGCN", build_model(config, dataset))
    model.begin_epoch(epoch, torch.Generator().manual_seed(seed))
    return model


def kept_edges(model: LayerGCN) -> list[tuple[int, int]]:
    assert model.pruned_graph is not None
    users, items = model.pruned_graph.user_item_edges(len(model.users)).tolist()
    return list(zip(users, items, strict=True))


def naive_vectors(model: LayerGCN, edges: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The module's formulas, node by node and layer by layer, on a dense matrix."""
    n_users, n = len(model.users), len(model.users) + len(model.items)
    dense = torch.zeros(n, n)
    for user, item in edges:
        dense[user, n_users + item] = dense[n_users + item, user] = 1
    degrees = dense.sum(1) + 1e-7
    normalised = dense / (degrees.unsqueeze(1) * degrees.unsqueeze(0)).sqrt()
    ego = torch.cat([model.users, model.items])
    x, layers = ego, []
    for _ in range(model.config.layers):
        h = normalised @ x
        cosines = [
            torch.dot(h[v], ego[v]) / (h[v].norm() * ego[v].norm()) if dense[v].any() else torch.zeros(())
            for v in range(n)
        ]
        x = torch.stack([c * row for c, row in zip(cosines, h, strict=True)])
        layers.append(x)
    total = sum(layers, torch.zeros(()))
    return total[:n_users], total[n_users:]


def naive_loss(model: LayerGCN, edges: list[tuple[int, int]]) -> Tensor:
    users, items = naive_vectors(model, edges)
    loss = torch.zeros(())
    for u, i, j in zip(USERS.tolist(), POSITIVES.tolist(), NEGATIVES.tolist(), strict=True):
        loss = loss - torch.log(torch.sigmoid(users[u] @ items[i] - users[u] @ items[j]))
        squares = model.users[u].square().sum() + model.items[i].square().sum() + model.items[j].square().sum()
        loss = loss + model.config.regularisation * squares / 2
    return loss


def our_loss(model: LayerGCN, batch: Batch = BATCH) -> Tensor:
    latent = model.represent(model.hidden(batch.rows))
    return model.loss(latent, batch)["bpr"] + model.decay(latent, batch)


@pytest.mark.parametrize("site", ["output", "ego"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_loss_and_gradients_equal_a_dense_reference(layers: int, site: str) -> None:
    model = make_model(
        f"model.layers={layers}", f"model.inject_at={site}", "model.regularisation=0.3", "model.pruned=0.6"
    )
    for batch in (BATCH, Batch.of(USERS, POSITIVES, NEGATIVES, all_items=True)):
        ours, naive = our_loss(model, batch), naive_loss(model, kept_edges(model))
        assert ours.item() == pytest.approx(naive.item(), rel=1e-6)
        values = list(model.parameters())
        for left, right in zip(torch.autograd.grad(ours, values), torch.autograd.grad(naive, values), strict=True):
            assert torch.allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("site", ["output", "ego"])
def test_inference_uses_the_full_graph(site: str) -> None:
    model = make_model(f"model.inject_at={site}", "model.pruned=0.9")
    train = DATASET.train
    expected = naive_vectors(model, list(zip(train.users.tolist(), train.items.tolist(), strict=True)))
    for ours, naive in zip(model.vectors(), expected, strict=True):
        assert torch.allclose(ours, naive, rtol=1e-4, atol=1e-6)


def test_refinement_worked_by_hand() -> None:
    # One user, one item, one edge: Â swaps the two. An isolated item beside them stays zero.
    model = make_model(
        "model.layers=2",
        "model.dimension=2",
        "model.pruned=0",
        dataset=make_dataset([(0, 0)], [(0, 1)], [(0, 1)], n_users=1, n_items=2),
    )
    with torch.no_grad():
        model.users.copy_(torch.tensor([[3.0, 4.0]]))
        model.items.copy_(torch.tensor([[2.0, 0.0], [5.0, 5.0]]))
    # Layer 1: user gets (2, 0), at cosine 3/5 to (3, 4); item gets (3, 4), at cosine 3/5 to (2, 0).
    # Layer 2: user gets .6 (3, 4), cosine 1; item gets .6 (2, 0), cosine 1.
    for users, items in (model.vectors(), model.towers(model.represent(model.hidden(Rows())))):
        assert torch.allclose(users, torch.tensor([[1.2 + 1.8, 2.4]]), atol=1e-5)
        assert torch.allclose(items, torch.tensor([[1.8 + 1.2, 2.4], [0.0, 0.0]]), atol=1e-5)


def test_an_isolated_node_gets_no_gradient_and_no_nan() -> None:
    model = make_model(dataset=make_dataset([(0, 0), (1, 0)], [(0, 1)], [(0, 1)], n_users=3, n_items=2))
    users, items = model.towers(model.represent(model.hidden(Rows())))
    (users.square().sum() + (items - 1).square().sum()).backward()  # type: ignore[no-untyped-call]
    assert model.users.grad is not None
    assert bool((users[2] == 0).all())
    assert bool((model.users.grad[2] == 0).all())
    assert bool(model.users.grad[:2].isfinite().all())


def test_each_epoch_keeps_its_share_of_the_edges_anew() -> None:
    model = make_model("model.pruned=0.3")
    every = set(zip(DATASET.train.users.tolist(), DATASET.train.items.tolist(), strict=True))
    kept = []
    for epoch in (1, 2, 3):
        model.begin_epoch(epoch, torch.Generator().manual_seed(epoch))
        kept.append(kept_edges(model))
        assert len(set(kept[-1])) == len(kept[-1]) == int(len(every) * 0.7) == 84
        assert set(kept[-1]) < every
    assert kept[0] != kept[1] != kept[2] != kept[0]
    model.begin_epoch(2, torch.Generator().manual_seed(2))
    assert kept_edges(model) == kept[1]


def test_odd_epochs_spare_edges_of_low_degree_and_even_ones_are_uniform() -> None:
    # User 0 and item 0 have degree 12, the others 1 or 2: the edge between the two hubs is the first to go by degree.
    edges = [(0, item) for item in range(12)] + [(user, 0) for user in range(1, 12)]
    lone = [(user, user) for user in range(1, 12)]
    dataset = make_dataset([*edges, *lone], [(1, 2)], [(1, 3)], n_users=12, n_items=12)
    model = make_model("model.pruned=0.5", dataset=dataset)
    share: dict[int, Counter[bool]] = {}
    for epoch in (1, 2):
        share[epoch] = Counter()
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            model.begin_epoch(epoch, generator)
            kept = kept_edges(model)
            share[epoch].update({True: (0, 0) in kept, False: sum(edge in kept for edge in lone)})
    # 17 of 34 stay. Uniformly each stays with probability ½ (the hubs' edge: 150 ± 9 of 300).
    assert 110 <= share[2][True] <= 190
    assert share[1][True] < 90
    assert share[2][False] / (11 * 300) == pytest.approx(0.5, abs=0.03)
    assert share[1][False] / (11 * 300) > 0.6


def test_without_pruning_training_uses_the_full_graph() -> None:
    model = make_model("model.pruned=0")
    assert model.pruned_graph is None
    trained = model.towers(model.represent(model.hidden(Rows())))
    for left, right in zip(trained, model.vectors(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_loss_and_decay_are_sums_over_the_batch() -> None:
    model = make_model("model.regularisation=0.3")
    twice = Batch.of(USERS.repeat(2), POSITIVES.repeat(2), NEGATIVES.repeat(2))
    once_latent, twice_latent = (model.represent(model.hidden(batch.rows)) for batch in (BATCH, twice))
    assert model.loss(twice_latent, twice)["bpr"].item() == pytest.approx(
        2 * model.loss(once_latent, BATCH)["bpr"].item()
    )
    assert model.decay(twice_latent, twice).item() == pytest.approx(2 * model.decay(once_latent, BATCH).item())


def test_both_sites_give_the_same_representations() -> None:
    rows = Rows(torch.tensor([3, 1]), torch.tensor([7, 0, 12]))
    latents: list[Latent] = []
    for site in ("output", "ego"):
        model = make_model(f"model.inject_at={site}")
        hidden = model.hidden(rows)
        shapes = {name: tuple(value.shape) for name, value in hidden.sites.items()}
        assert shapes == (
            {"users": (2, 8), "items": (3, 8)} if site == "output" else {"users": (10, 8), "items": (40, 8)}
        )
        latents.append(model.represent(hidden))
        whole = model.represent(model.hidden(Rows()))
        assert torch.equal(whole.users[rows.users], latents[-1].users)
        assert torch.equal(whole.items[rows.items], latents[-1].items)
    assert torch.equal(latents[0].users, latents[1].users)
    assert torch.equal(latents[0].items, latents[1].items)


def test_shapes_and_initial_values() -> None:
    model = make_model("model.dimension=64")
    assert {name: tuple(v.shape) for name, v in model.state_dict().items()} == {"users": (10, 64), "items": (40, 64)}
    for table in (model.users, model.items):
        bound = (6 / sum(table.shape)) ** 0.5
        assert table.abs().max().item() <= bound
        assert table.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_another_models_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="LayerGCN wants a LayerGCNConfig, got ModelConfig"):
        LayerGCN(ModelConfig(), model_data(DATASET), torch.Generator())
