from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.helpers_training import make_config, planted_blocks
from training.build import build_model, model_data
from training.common.errors import ConfigError
from training.models.base import Batch, ModelConfig, Rows
from training.models.vbpr import VBPR

DATASET = planted_blocks(n_users=10, n_items=40)
USERS = torch.tensor([4, 0, 4, 9, 9, 9])
POSITIVES = torch.tensor([8, 0, 10, 3, 3, 5])
NEGATIVES = torch.tensor([3, 7, 3, 0, 0, 8])


def make_model(*overrides: str) -> VBPR:
    return cast("VBPR", build_model(make_config("none", "model.regularisation=0.7", *overrides), DATASET))


def naive_loss(model: VBPR) -> Tensor:
    """Spec §2.1, term by term: concatenate, project, concatenate, BPR with 1e-10 inside the log, λ·EmbLoss."""
    raw = torch.cat([torch.from_numpy(DATASET.features[name].copy()) for name in ("image", "text")], dim=1)
    hidden = raw @ model.weight.T + model.bias
    items = torch.cat([model.items, hidden], dim=1)
    user, positive, negative = model.users[USERS], items[POSITIVES], items[NEGATIVES]
    wins = torch.sigmoid((user * positive).sum(1) - (user * negative).sum(1))
    norms = sum((torch.norm(part) for part in (user, positive, negative)), torch.zeros(()))
    return -torch.log(1e-10 + wins).mean() + 0.7 * norms / len(USERS)


def our_loss(model: VBPR, *, all_items: bool) -> Tensor:
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, all_items=all_items)
    latent = model.represent(model.hidden(batch.rows))
    return model.loss(latent, batch)["bpr"] + model.decay(latent, batch)


@pytest.mark.parametrize("all_items", [False, True])
def test_loss_and_gradients_equal_the_specification(all_items: bool) -> None:
    model = make_model()
    ours, naive = our_loss(model, all_items=all_items), naive_loss(model)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-6)
    names, values = zip(*model.named_parameters(), strict=True)
    grads = [torch.autograd.grad(loss, values) for loss in (ours, naive)]
    for name, left, right in zip(names, *grads, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("all_items", [False, True])
def test_the_squared_decay_is_half_the_squares_of_every_triple_over_the_batch(all_items: bool) -> None:
    model = make_model("model.decay=squared")
    batch = Batch.of(USERS, POSITIVES, NEGATIVES, all_items=all_items)
    found = model.decay(model.represent(model.hidden(batch.rows)), batch)
    users, items = model.vectors()
    squares = sum(
        (
            rows[row].square().sum()
            for rows, part in ((users, USERS), (items, POSITIVES), (items, NEGATIVES))
            for row in part
        ),
        torch.zeros(()),
    )
    expected = 0.7 * 0.5 * squares / len(USERS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    names, values = zip(*model.named_parameters(), strict=True)
    grads = [torch.autograd.grad(value, values) for value in (found, expected)]
    for name, left, right in zip(names, *grads, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-7), name


def test_shapes_and_initial_values() -> None:
    model = make_model("model.dimension=64")
    width = sum(DATASET.modalities.values())
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes == {"users": (10, 128), "items": (40, 64), "weight": (64, width), "bias": (64,)}
    # Xavier uniform: bounded by √(6/(fan_in+fan_out)); Xavier normal: deviation √(2/(fan_in+fan_out)).
    for table in (model.users, model.items):
        bound = math.sqrt(6 / sum(table.shape))
        assert table.abs().max().item() <= bound
        assert table.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    deviation = math.sqrt(2 / (64 + width))
    assert model.weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert model.weight.abs().max().item() > 2 * deviation
    assert bool((model.bias == 0).all())


def test_only_learned_tensors_are_stored() -> None:
    model = make_model()
    assert sorted(model.state_dict()) == ["bias", "items", "users", "weight"]


def test_the_hidden_site_is_the_projection_alone() -> None:
    model = make_model()
    hidden = model.hidden(Rows(users=torch.tensor([1]), items=torch.tensor([5, 2])))
    assert {name: tuple(value.shape) for name, value in hidden.sites.items()} == {"fused": (2, 8)}
    latent = model.represent(hidden)
    assert torch.equal(latent.items[:, :8], model.items[[5, 2]])  # the id half cannot be perturbed
    assert torch.equal(latent.items[:, 8:], hidden.sites["fused"])


@pytest.mark.parametrize("new_item_id", ["zero", "mean"])
def test_an_unseen_item_is_placed_by_its_features(new_item_id: str) -> None:
    model = make_model(f"model.new_item_id={new_item_id}")
    known = {name: torch.from_numpy(matrix[3:5].copy()) for name, matrix in DATASET.features.items()}
    _, items = model.vectors()
    vectors = model.item_encoder({})(known)
    assert torch.allclose(vectors[:, 8:], items[3:5, 8:], atol=1e-6)
    expected = model.items.mean(0) if new_item_id == "mean" else torch.zeros(8)
    assert torch.allclose(vectors[:, :8], expected.expand(2, -1))


def test_another_models_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="VBPR wants a VBPRConfig, got ModelConfig"):
        VBPR(ModelConfig(), model_data(DATASET), torch.Generator())
