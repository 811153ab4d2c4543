from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers_training import make_config, make_dataset
from training.build import build_model, model_data
from training.common.errors import ConfigError
from training.models.base import Batch, ModelConfig, Rows
from training.models.grcn import GRCN

# User 4 has no training interaction, neither have items 4 and 5: nodes without neighbours.
EDGES = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 0), (2, 3), (3, 3)]
N_USERS, N_ITEMS = 5, 6
_DRAW = np.random.default_rng(3)
FEATURES = {
    "image": _DRAW.standard_normal((N_ITEMS, 9)).astype(np.float32),
    "text": _DRAW.standard_normal((N_ITEMS, 4)).astype(np.float32),
}
DATASET = make_dataset(EDGES, [(0, 2)], [(1, 3)], n_users=N_USERS, n_items=N_ITEMS, features=FEATURES)
USERS, POSITIVES, NEGATIVES = torch.tensor([2, 0, 2, 3]), torch.tensor([3, 1, 0, 3]), torch.tensor([1, 5, 4, 1])
BY_SITE = pytest.mark.parametrize("site", ["content", "edges"])
BY_ROUTING = pytest.mark.parametrize("routing", ["item_to_user", "none"])


def make_model(*overrides: str) -> GRCN:
    small = ["model.dimension=3", "model.regularisation=0.7"]
    return cast("GRCN", build_model(make_config("none", *small, *overrides, model="grcn"), DATASET))


def adjacency() -> Tensor:
    matrix = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS)
    for user, item in EDGES:
        matrix[user, N_USERS + item] = matrix[N_USERS + item, user] = 1
    return matrix


def attention(left: Tensor, right: Tensor, pattern: Tensor) -> Tensor:
    """Dense softmax of the inner products over each row's entries of a 0/1 pattern; zero rows where it has none."""
    logits = (left @ right.T).masked_fill(pattern == 0, -torch.inf)
    return torch.where(pattern > 0, torch.softmax(torch.where(pattern.any(1, keepdim=True), logits, 0.0), dim=1), 0.0)


def reference(model: GRCN) -> tuple[Tensor, Tensor]:
    """Spec §2.3 with dense N × N matrices (row = target, column = source)."""
    both = adjacency()
    weights: list[Tensor] = []
    contents: list[Tensor] = []
    for name, network in model.contents.items():
        raw = torch.from_numpy(FEATURES[name].copy())
        items = F.normalize(F.leaky_relu(raw @ network.projection.weight.T + network.projection.bias))
        users = F.normalize(network.preferences)
        if model.config.routing == "item_to_user":
            for _ in range(model.config.routings):
                alpha = attention(users, items, both[:N_USERS, N_USERS:])
                users = F.normalize(users + alpha @ items)
        x = torch.cat([users, items])
        alpha = attention(x, x, both)
        contents.append(x + alpha @ x)
        weights.append(alpha * model.confidence[:, len(weights)])  # of the source: one factor per column
    refined = torch.relu(torch.stack(weights).max(0).values) * both
    x = F.normalize(model.ids)
    first = refined @ x
    ids = x + first + refined @ first
    total = torch.cat([ids, *contents], dim=1)
    return total[:N_USERS], total[N_USERS:]


def naive_loss(model: GRCN) -> Tensor:
    users, items = reference(model)
    margins = (users[USERS] * (items[POSITIVES] - items[NEGATIVES])).sum(1)
    twice = torch.cat([USERS, USERS])
    decay = (model.ids[twice] ** 2 + model.ids[N_USERS + torch.cat([POSITIVES, NEGATIVES])] ** 2).mean()
    for network in model.contents.values():
        decay = decay + (network.preferences[twice] ** 2).mean()
    return -torch.log(torch.sigmoid(margins)).mean() + 0.7 * decay


def with_large_confidence(model: GRCN) -> GRCN:
    """Give some edges a negative weight in all modalities, some in one, and none a weight near zero."""
    with torch.no_grad():
        signs = torch.where(torch.arange(2 * len(model.confidence)).reshape(-1, 2) % 7 < 4, 1.0, -1.0)
        model.confidence.copy_(signs * (0.5 + model.confidence.abs()))
    return model


@BY_SITE
@BY_ROUTING
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("all_items", [False, True])
def test_values_and_gradients_equal_dense_matrices(site: str, routing: str, training: bool, all_items: bool) -> None:
    model = with_large_confidence(make_model(f"model.inject_at={site}", f"model.routing={routing}"))
    naive = naive_loss(model)
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, all_items=all_items)
    hidden = model.hidden(batch.rows)
    decay = model.decay(model.represent(hidden), batch)
    model.train(training)  # sparse kernels, or gathering and scattering
    ours = model.loss(model.represent(model.hidden(batch.rows)), batch)["bpr"] + decay
    assert ours.item() == pytest.approx(naive.item(), rel=1e-5)
    names, values = zip(*model.named_parameters(), strict=True)
    for name, left, right in zip(names, *(torch.autograd.grad(loss, values) for loss in (ours, naive)), strict=True):
        assert right.abs().sum() > 0, name
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-6), name


@BY_SITE
@pytest.mark.parametrize("training", [False, True])
def test_vectors_and_selected_rows_equal_dense_matrices(site: str, training: bool) -> None:
    model = with_large_confidence(make_model(f"model.inject_at={site}")).train(training)
    expected = reference(model)
    for ours, dense in zip(model.vectors(), expected, strict=True):
        assert torch.allclose(ours, dense, atol=1e-6)
    rows = Rows(torch.tensor([4, 1]), torch.tensor([5, 0, 3]))
    latent = model.represent(model.hidden(rows))
    assert torch.allclose(latent.users, expected[0][[4, 1]], atol=1e-6)
    assert torch.allclose(latent.items, expected[1][[5, 0, 3]], atol=1e-6)


def test_routing_brings_the_items_to_the_users_or_does_nothing() -> None:
    start = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0], [3.0, 4.0]]))
    items = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [1.0, 2.0], [2.0, 1.0]]))
    assert torch.equal(make_model("model.routing=none").routed(start, items), start)
    routed = make_model("model.routings=1").routed(start, items)
    # User 0 is (1, 0), has items (0, 1) and (1, 0), agrees with them by 0 and 1: attention 1/(1+e) and e/(1+e).
    far, near = 1 / (1 + math.e), math.e / (1 + math.e)
    length = math.hypot(1 + near, far)
    assert routed[0].tolist() == pytest.approx([(1 + near) / length, far / length])
    # User 1 is (0, 1) and has the item (1, 0) only; user 4 has none and stays.
    assert routed[1].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])
    assert routed[4].tolist() == pytest.approx([0.6, 0.8])
    again = make_model("model.routings=2").routed(start, items)
    assert torch.allclose(again, make_model("model.routings=1").routed(routed, items), atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_attention_sums_to_one_over_the_edges_into_a_node(training: bool) -> None:
    model = make_model("model.inject_at=edges").train(training)
    edges = model.hidden(Rows()).sites["edges"]
    assert edges.shape == (2 * len(EDGES), 2)
    sums = torch.zeros(N_USERS + N_ITEMS, 2).index_add(0, model.graph.targets, edges)
    connected = (adjacency().sum(1) > 0).float().unsqueeze(1)
    assert torch.allclose(sums, connected.expand(-1, 2))


def test_edges_keep_the_larger_weight_if_it_is_positive() -> None:
    pairs = [(0, 0), (0, 1), (1, 1)]
    dataset = make_dataset(pairs, [(1, 0)], [(0, 0)], n_users=2, n_items=2, features=FEATURES_OF_TWO)
    config = make_config("none", "model.dimension=1", "model.layers=1", model="grcn")
    model = cast("GRCN", build_model(config, dataset))
    with torch.no_grad():
        model.ids.copy_(torch.tensor([[5.0], [-5.0], [5.0], [5.0]]))  # normalised: 1, -1, 1, 1
        model.confidence.copy_(torch.tensor([[1.0, 2.0], [-1.0, -3.0], [0.5, -1.0], [1.0, 1.0]]))
    # Into user 0 from items 0 and 1, user 1 from item 1, item 0 from user 0, item 1 from users 0 and 1.
    edges = torch.tensor([[0.2, 0.9], [0.8, 0.1], [1.0, 1.0], [1.0, 1.0], [0.6, 0.4], [0.4, 0.6]])
    # Products: .1|-.9, .8|.1, 1|1, 1|2, .6|.8, -.4|-1.8. Maxima, pruned: .1, .8, 1, 2, .8, 0.
    y = model.convolved(edges).flatten().tolist()
    assert y == pytest.approx([1 + 0.1 + 0.8, -1 + 1.0, 1 + 2.0, 1 + 0.8])


FEATURES_OF_TWO = {name: np.ones((2, 2), np.float32) for name in ("image", "text")}


def test_the_content_site_is_what_is_appended_to_the_id_part() -> None:
    model = make_model()
    assert model.site_widths == {"users": 6, "items": 6}
    rows = Rows(torch.tensor([4, 1]), torch.tensor([5, 0, 3]))
    hidden = model.hidden(rows)
    assert {name: tuple(value.shape) for name, value in hidden.sites.items()} == {"users": (2, 6), "items": (3, 6)}
    changed = replace(hidden, sites={name: value + 1 for name, value in hidden.sites.items()})
    before, after = model.represent(hidden), model.represent(changed)
    for left, right in ((before.users, after.users), (before.items, after.items)):
        assert torch.equal(left[:, :3], right[:, :3])
        assert torch.allclose(left[:, 3:] + 1, right[:, 3:])


def test_the_edges_site_moves_the_id_part_and_no_content() -> None:
    model = with_large_confidence(make_model("model.inject_at=edges"))
    assert model.site_widths == {"edges": 2}
    hidden = model.hidden(Rows())
    changed = replace(hidden, sites={"edges": hidden.sites["edges"] + 0.25})
    before, after = model.represent(hidden), model.represent(changed)
    assert not torch.allclose(before.users[:4, :3], after.users[:4, :3])
    assert torch.equal(before.users[:, 3:], after.users[:, 3:])
    assert torch.equal(before.items[:, 3:], after.items[:, 3:])


def test_shapes_and_initial_values() -> None:
    model = make_model("model.dimension=64")
    state = dict(model.named_parameters())
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "ids": (11, 64),
        "confidence": (11, 2),
        **{f"of_{name}.preferences": (5, 64) for name in FEATURES},
        **{f"of_{name}.projection.weight": (64, FEATURES[name].shape[1]) for name in FEATURES},
        **{f"of_{name}.projection.bias": (64,) for name in FEATURES},
    }
    for name, value in state.items():
        if name.endswith("bias"):  # torch's own default
            bound = 1 / math.sqrt(FEATURES[name.split(".")[0].removeprefix("of_")].shape[1])
            assert 0.9 * bound < value.abs().max().item() <= bound
        elif name != "confidence":  # too small a table to judge its deviation
            assert_xavier_normal(name, value)
    assert sorted(model.state_dict()) == sorted(state)


def assert_xavier_normal(name: str, value: Tensor) -> None:
    deviation = math.sqrt(2 / sum(value.shape))
    assert value.std().item() == pytest.approx(deviation, rel=0.1), name
    assert value.abs().max().item() > 2 * deviation, name  # a uniform distribution ends at √3


def test_initial_confidence() -> None:
    many = replace(model_data(DATASET), n_users=500)
    model = GRCN(GRCN.Config.model_validate({"dimension": 3}), many, torch.Generator().manual_seed(0))
    assert model.confidence.shape == (506, 2)
    assert_xavier_normal("confidence", model.confidence)


def test_building_draws_nothing_from_the_global_state() -> None:
    before = torch.get_rng_state()
    make_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_models_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="GRCN wants a GRCNConfig, got ModelConfig"):
        GRCN(ModelConfig(), model_data(DATASET), torch.Generator())


def test_products_that_cancel_keep_their_digits_in_evaluation() -> None:
    """Added up in float32, a row of a thousand products near 1e3 whose sum is near 1 has three digits left."""
    draw = np.random.default_rng(0)
    features = (1e3 + draw.standard_normal((N_ITEMS, 1000))).astype(np.float32)
    data = make_dataset(EDGES, [(0, 2)], [(1, 3)], n_users=N_USERS, n_items=N_ITEMS, features={"text": features})
    model = cast("GRCN", build_model(make_config("none", "model.dimension=3", model="grcn"), data)).eval()
    network = model.contents["text"]
    with torch.no_grad():
        network.projection.weight.sub_(network.projection.weight.mean(dim=1, keepdim=True))
        exact = torch.from_numpy(features.astype(np.float64)) @ network.projection.weight.double().T
        wanted = F.normalize(F.leaky_relu(exact + network.projection.bias.double()))
        torch.testing.assert_close(network.projected().double(), wanted, rtol=0, atol=2e-7)
        model.train()
        assert (network.projected().double() - wanted).abs().max() > 1e-6
