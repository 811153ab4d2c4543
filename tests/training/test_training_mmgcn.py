from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers_training import make_config, make_dataset
from training.build import build_model, model_data
from training.common.errors import ConfigError
from training.models.base import Batch, Hidden, ModelConfig, Rows
from training.models.mmgcn import MMGCN

# User 4 has no training interaction, neither have items 4 and 5: nodes without neighbours.
EDGES = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 0), (2, 3), (3, 3)]
N_USERS, N_ITEMS = 5, 6
_DRAW = np.random.default_rng(3)
FEATURES = {
    "text": _DRAW.standard_normal((N_ITEMS, 4)).astype(np.float32),
    "image": _DRAW.standard_normal((N_ITEMS, 9)).astype(np.float32),
}
DATASET = make_dataset(EDGES, [(0, 2)], [(1, 3)], n_users=N_USERS, n_items=N_ITEMS, features=FEATURES)
USERS, POSITIVES, NEGATIVES = torch.tensor([2, 0, 2, 3]), torch.tensor([3, 1, 0, 3]), torch.tensor([1, 5, 4, 1])
SITES: tuple[Literal["projected", "input"], ...] = ("projected", "input")


def make_model(*overrides: str) -> MMGCN:
    small = ["model.dimension=3", "model.projected_width=5", "model.project_above=8", "model.regularisation=0.7"]
    return cast("MMGCN", build_model(make_config("none", *small, *overrides, model="mmgcn"), DATASET))


def linear(model: MMGCN, name: str, x: Tensor) -> Tensor:
    state = dict(model.named_parameters())
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def reference(model: MMGCN) -> tuple[Tensor, Tensor]:
    """Spec §2.2 with dense matrices over all N nodes and the concatenations spelled out."""
    adjacency = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS)
    for user, item in EDGES:
        adjacency[user, N_USERS + item] = adjacency[N_USERS + item, user] = 1
    mean = adjacency / adjacency.sum(1, keepdim=True).clamp_min(1)
    ids = torch.cat([model.id_users, model.id_items])
    outputs = []
    for name, matrix in FEATURES.items():
        features = torch.from_numpy(matrix.copy())
        if name == "image":
            features = linear(model, "of_image.projection", features)
        tables = dict(model.named_parameters()) | dict(model.named_buffers())
        x = F.normalize(torch.cat([tables[f"of_{name}.preferences"], features]))
        for layer in range(model.config.layers):
            prefix = f"of_{name}.layers.{layer}"
            h = F.leaky_relu(mean @ linear(model, f"{prefix}.neighbours", x))
            s = F.leaky_relu(linear(model, f"{prefix}.self_loop", x)) + ids
            x = F.leaky_relu(linear(model, f"{prefix}.joined", torch.cat([h, s], dim=1)))
        outputs.append(x)
    total = torch.stack(outputs).mean(0)
    return total[:N_USERS], total[N_USERS:]


def naive_loss(model: MMGCN) -> Tensor:
    users, items = reference(model)
    margins = (users[USERS] * (items[POSITIVES] - items[NEGATIVES])).sum(1)
    pairs = torch.cat([USERS, USERS]), torch.cat([POSITIVES, NEGATIVES])
    decay = (model.id_users[pairs[0]] ** 2 + model.id_items[pairs[1]] ** 2).mean()
    for network in model.networks.values():
        decay = decay + (network.preferences**2).mean()
    return -torch.log(torch.sigmoid(margins)).mean() + 0.7 * decay


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("all_items", [False, True])
def test_loss_and_gradients_equal_a_dense_computation(site: str, layers: int, all_items: bool) -> None:
    model = make_model(f"model.inject_at={site}", f"model.layers={layers}")
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, all_items=all_items)
    latent = model.represent(model.hidden(batch.rows))
    ours, naive = model.loss(latent, batch)["bpr"] + model.decay(latent, batch), naive_loss(model)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-5)
    names, values = zip(*model.named_parameters(), strict=True)
    for name, left, right in zip(names, *(torch.autograd.grad(loss, values) for loss in (ours, naive)), strict=True):
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("training", [False, True])
def test_vectors_and_selected_rows_equal_a_dense_computation(site: str, training: bool) -> None:
    model = make_model(f"model.inject_at={site}").train(training)
    expected = reference(model)
    for ours, dense in zip(model.vectors(), expected, strict=True):
        assert torch.allclose(ours, dense, atol=1e-6)
    assert model.training is training
    rows = Rows(torch.tensor([4, 1]), torch.tensor([5, 0, 3]))
    latent = model.represent(model.hidden(rows))
    assert torch.allclose(latent.users, expected[0][[4, 1]], atol=1e-6)
    assert torch.allclose(latent.items, expected[1][[5, 0, 3]], atol=1e-6)


def test_a_node_gets_the_mean_of_its_neighbours_and_zero_without_any() -> None:
    model = make_model()
    values = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]])
    assert model.to_users(values).flatten().tolist() == pytest.approx([1.5, 2.0, 13 / 3, 8.0, 0.0])
    assert model.to_items(values[:5]).flatten().tolist() == pytest.approx([2.5, 1.5, 4.0, 6.0, 0.0, 0.0])


def test_one_layer_by_hand() -> None:
    dataset = make_dataset(
        [(0, 0), (0, 1)], [(0, 0)], [(0, 1)], n_users=1, n_items=2, features={"text": np.array([[2], [-3]], np.float32)}
    )
    config = make_config("none", "model.dimension=1", "model.layers=1", model="mmgcn")
    model = cast("MMGCN", build_model(config, dataset))
    values = {
        "id_users": [[0.5]],
        "id_items": [[0.25], [1.0]],
        "of_text.preferences": [[-7.0]],
        "of_text.layers.0.neighbours.weight": [[2.0]],
        "of_text.layers.0.self_loop.weight": [[3.0]],
        "of_text.layers.0.self_loop.bias": [1.0],
        "of_text.layers.0.joined.weight": [[10.0, 100.0]],
        "of_text.layers.0.joined.bias": [-4.0],
    }
    model.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    # x0: user -1, items +1 and -1. h: user 2·(1 - 1)/2 = 0, items lrelu(-2) = -.02.
    # s: user lrelu(-3 + 1) + .5 = .48, items lrelu(4) + .25 = 4.25 and lrelu(-2) + 1 = .98.
    users, items = model.vectors()
    assert users.tolist() == [[pytest.approx(10 * 0 + 100 * 0.48 - 4)]]
    assert items.flatten().tolist() == pytest.approx([-0.2 + 425 - 4, -0.2 + 98 - 4])


def test_only_wide_modalities_are_projected() -> None:
    model = make_model()
    assert model.site_widths == {"image": 5, "text": 4}
    assert make_model("model.inject_at=input").site_widths == {"image": 9, "text": 4}
    assert make_model("model.project_above=9").site_widths == {"image": 9, "text": 4}
    hidden = model.hidden(Rows())
    for name, width in model.site_widths.items():
        assert hidden.sites[name].shape == (N_ITEMS, width)
        assert torch.allclose(hidden.sites[name].norm(dim=1), torch.ones(N_ITEMS))
    raw = make_model("model.inject_at=input").hidden(Rows()).sites
    assert all(np.array_equal(raw[name].numpy(), matrix) for name, matrix in FEATURES.items())


@pytest.mark.parametrize("site", SITES)
def test_a_change_of_the_site_reaches_users_and_items(site: str) -> None:
    model = make_model(f"model.inject_at={site}")
    hidden = model.hidden(Rows())
    for name, value in hidden.sites.items():
        changed = replace(hidden, sites={**hidden.sites, name: value + torch.linspace(0.1, 1, value.shape[1])})
        expected = _dense_from(model, changed) if site == "projected" else None
        latent, before = model.represent(changed), model.represent(hidden)
        assert not torch.allclose(latent.items, before.items)
        assert not torch.allclose(latent.users[:4], before.users[:4])
        assert torch.equal(latent.users[4], before.users[4])  # has no neighbours
        if expected is not None:
            assert torch.allclose(latent.users, expected[0], atol=1e-6)
            assert torch.allclose(latent.items, expected[1], atol=1e-6)


def _dense_from(model: MMGCN, hidden: Hidden) -> tuple[Tensor, Tensor]:
    """The dense computation from sites that are no longer what the features say."""
    normalise = F.normalize
    sites = iter(hidden.sites[name] for name in FEATURES)
    try:
        F.normalize = lambda x: torch.cat([normalise(x[:N_USERS]), next(sites)])  # type: ignore[assignment, misc]
        return reference(model)
    finally:
        F.normalize = normalise


def test_frozen_tables_are_saved_and_never_learned() -> None:
    model = make_model("model.train_tables=false")
    tables = {"id_users", "id_items", "of_image.preferences", "of_text.preferences"}
    assert tables <= model.state_dict().keys()
    assert not tables & {name for name, _ in model.named_parameters()}
    learned = make_model()
    assert model.state_dict().keys() == learned.state_dict().keys()
    assert tables <= {name for name, _ in learned.named_parameters()}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in learned.state_dict().items())
    batch = Batch.of(USERS, POSITIVES, NEGATIVES)
    latent = model.represent(model.hidden(batch.rows))
    assert not model.decay(latent, batch).requires_grad
    assert model.loss(latent, batch)["bpr"].requires_grad


def test_shapes_and_initial_values() -> None:
    config = make_config("none", "model.dimension=64", "model.project_above=8", model="mmgcn")
    model = cast("MMGCN", build_model(config, DATASET))
    state = dict(model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in state.items() if name.startswith("of_image")}
    layer = "of_image.layers"
    assert shapes == {
        "of_image.preferences": (5, 256),
        "of_image.projection.weight": (256, 9),
        "of_image.projection.bias": (256,),
        **{f"{layer}.{n}.neighbours.weight": (width, width) for n, width in enumerate((256, 64, 64))},
        **{f"{layer}.{n}.self_loop.weight": (64, width) for n, width in enumerate((256, 64, 64))},
        **{f"{layer}.{n}.self_loop.bias": (64,) for n in range(3)},
        **{f"{layer}.{n}.joined.weight": (64, width + 64) for n, width in enumerate((256, 64, 64))},
        **{f"{layer}.{n}.joined.bias": (64,) for n in range(3)},
    }
    xavier = ["of_image.preferences", f"{layer}.0.joined.weight"]
    xavier += [f"{layer}.{n}.{part}.weight" for n in range(3) for part in ("neighbours", "self_loop")]
    ids = torch.cat([state["id_users"], state["id_items"]])
    tables: dict[str, Tensor] = {"ids": ids, **{name: state[name] for name in xavier}}
    for name, value in tables.items():
        deviation = math.sqrt(2 / sum(value.shape))
        assert value.std().item() == pytest.approx(deviation, rel=0.1), name
        assert value.abs().max().item() > 2 * deviation, name  # normal: a uniform distribution ends at √3
    for name in ("of_image.projection", f"{layer}.1.joined", f"{layer}.2.joined"):  # torch's own default
        bound = 1 / math.sqrt(state[f"{name}.weight"].shape[1])
        for kind in ("weight", "bias"):
            assert 0.9 * bound < state[f"{name}.{kind}"].abs().max().item() <= bound, name
            assert state[f"{name}.{kind}"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name


def test_building_draws_nothing_from_the_global_state() -> None:
    before = torch.get_rng_state()
    make_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_models_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="MMGCN wants a MMGCNConfig, got ModelConfig"):
        MMGCN(ModelConfig(), model_data(DATASET), torch.Generator())
