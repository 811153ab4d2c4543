from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers_training import CPU, check_draws, make_config, planted_blocks
from training.build import build_model, build_objective, model_data
from training.common.errors import ConfigError, DataError
from training.epoch import EpochRunner
from training.models.base import Batch, Hidden, Latent, ModelConfig, Rows
from training.models.bm3 import BM3

DATASET = planted_blocks(n_users=10, n_items=40)
NAMES = ("image", "text")
USERS = torch.tensor([4, 0, 4, 9, 9, 9])
POSITIVES = torch.tensor([8, 0, 10, 3, 3, 8])
NONE = USERS[:0]


def make_model(*overrides: str) -> BM3:
    config = make_config("none", "model.dimension=8", *overrides, model="bm3")
    model = cast("BM3", build_model(config, DATASET))
    model.begin_epoch(1, torch.Generator().manual_seed(5))
    return model


def whole(model: BM3) -> tuple[Tensor, Tensor]:
    """u and i of all rows, by a dense matrix."""
    n_users = DATASET.n_users
    users, items = torch.from_numpy(DATASET.train.users.copy()), torch.from_numpy(DATASET.train.items.copy())
    dense = torch.zeros(n_users + DATASET.n_items, n_users + DATASET.n_items)
    dense[users, n_users + items] = dense[n_users + items, users] = 1.0
    scale = (dense.sum(1) + 1e-7).rsqrt()
    dense = scale[:, None] * dense * scale
    layers = [torch.cat([model.users, model.items])]
    for _ in range(model.config.layers):
        layers.append(dense @ layers[-1])
    mean = torch.stack(layers).mean(0)
    return mean[:n_users], mean[n_users:] + model.items


def tables(model: BM3) -> dict[str, Tensor]:
    return {name: getattr(model, f"features_{name}") for name in NAMES}


def predict(model: BM3, x: Tensor) -> Tensor:
    return x @ model.predictor.weight.T + model.predictor.bias


def pass_of(model: BM3, *, all_items: bool = False) -> tuple[Batch, Hidden, Latent]:
    batch = Batch.of(USERS, POSITIVES, NONE, all_items=all_items)
    hidden = model.train().hidden(batch.rows)
    return batch, hidden, model.represent(hidden)


def naive_loss(model: BM3, batch: Batch, hidden: Hidden) -> dict[str, Tensor]:
    """Spec §2.4 with one row per pair. Targets of users and items come without their masks, which ``hidden`` holds."""

    def cosine_loss(online: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(online, target.detach()).mean()

    users, items = whole(model)
    user, item = users[USERS], items[POSITIVES]
    user_target = hidden.context["user targets"][batch.users]
    item_target = hidden.context["item targets"][batch.positives]
    terms = {
        "user_item": cosine_loss(predict(model, user), item_target) + cosine_loss(predict(model, item), user_target),
        "decay": 0.1 * (users.square().sum().sqrt() + items.square().sum().sqrt()) / DATASET.n_items,
    }
    modalities = []
    for name, table in tables(model).items():
        layer = getattr(model, f"projection_{name}")
        projected = table[POSITIVES] @ layer.weight.T + layer.bias
        target = projected * hidden.context[f"mask of {name}"][batch.positives]
        online = predict(model, projected)
        modalities += [cosine_loss(online, item_target), cosine_loss(online, target)]
    terms["modalities"] = 2.0 * torch.stack(modalities).sum()
    return terms


def dense_grads(loss: Tensor, model: BM3) -> dict[str, Tensor]:
    names, values = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, values, allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(value) if grad is None else grad.to_dense()
        for name, value, grad in zip(names, values, grads, strict=True)
    }


@pytest.mark.parametrize("all_items", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_terms_and_gradients_equal_the_specification(all_items: bool, layers: int) -> None:
    model = make_model(f"model.layers={layers}")
    batch, hidden, latent = pass_of(model, all_items=all_items)
    ours = {**model.loss(latent, batch), "decay": model.decay(latent, batch)}
    naive = naive_loss(model, batch, hidden)
    assert list(ours) == ["user_item", "modalities", "decay"]
    for name, value in ours.items():
        assert value.item() == pytest.approx(naive[name].item(), rel=1e-5), name
        left, right = dense_grads(value, model), dense_grads(naive[name], model)
        for parameter, grad in left.items():
            assert torch.allclose(grad, right[parameter], rtol=1e-4, atol=1e-6), (name, parameter)


def test_targets_are_the_rows_under_their_masks() -> None:
    model = make_model()
    _, hidden, latent = pass_of(model)
    assert hidden.rows.users is not None
    assert hidden.rows.items is not None
    users, items = whole(model)
    rows = {"user": users[hidden.rows.users], "item": items[hidden.rows.items]}
    for name, row in rows.items():
        target = hidden.context[f"{name} targets"]
        kept = target != 0
        assert 0.3 < kept.float().mean().item() < 0.7
        assert torch.allclose(target, F.normalize(row * kept), atol=1e-6)
    for name in NAMES:
        mask = hidden.context[f"mask of {name}"]
        assert set(torch.unique(mask).tolist()) == {0.0, 2.0}  # 1 / (1 - p)
        assert torch.allclose(latent.extra[f"targets of {name}"], F.normalize(hidden.sites[name] * mask), atol=1e-6)
    # Each is drawn for itself.
    masks = [hidden.context[name] != 0 for name in ("item targets", "mask of image", "mask of text")]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 3


def test_nothing_learns_through_a_target() -> None:
    model = make_model()
    batch, hidden, latent = pass_of(model)
    for name, value in latent.extra.items():
        assert value.requires_grad == (name in {"users", "items", "norms"}), name
    terms = model.loss(latent, batch)
    # Only the online side of a term reaches the parameters: no feature moves by the users' and items' term, no
    # embedding by the modalities' terms, although i* is made of embeddings.
    alone = {name: dense_grads(value, model) for name, value in terms.items()}
    for name, grad in alone["modalities"].items():
        assert bool((grad != 0).any()) == (name not in {"users", "items"}), name
    for name, grad in alone["user_item"].items():
        assert bool((grad != 0).any()) == (name in {"users", "items", "predictor.weight", "predictor.bias"}), name
    # A modality's gradient with its target left out is the gradient of the online side.
    site = hidden.sites["text"]
    (grad,) = torch.autograd.grad(terms["modalities"], site, retain_graph=True)
    online = F.normalize(predict(model, site))
    fixed = (latent.extra["item targets"] + latent.extra["targets of text"]).detach()
    shares = torch.bincount(batch.positives) / len(POSITIVES)
    (expected,) = torch.autograd.grad(-2 * (shares[:, None] * online * fixed).sum(), site)
    assert torch.allclose(grad, expected, atol=1e-6)


def test_a_second_pass_sees_the_same_masks() -> None:
    config = make_config("constant", "model.dimension=8", "dvib.sigma=0", model="bm3")
    objective = build_objective(config, DATASET).train()
    runner = EpochRunner(objective, config, DATASET, CPU)
    _, result = next(iter(runner.steps_of(1)))
    general = result.terms["general"].item() - result.terms["decay"].item()
    assert result.terms["general_perturbed"].item() == pytest.approx(general, rel=1e-6)
    assert result.terms["distillation"].item() == pytest.approx(0, abs=1e-6)


def test_a_perturbation_moves_the_modalities_only() -> None:
    model = make_model()
    _, hidden, clean = pass_of(model)
    sites = {name: site + 1.0 for name, site in hidden.sites.items()}
    noisy = model.represent(Hidden(sites, hidden.context, hidden.rows))
    assert noisy.users is clean.users
    assert noisy.items is clean.items
    for name in NAMES:
        assert not torch.equal(noisy.modalities[name], clean.modalities[name])
        mask = hidden.context[f"mask of {name}"]
        assert torch.equal(noisy.extra[f"targets of {name}"] != 0, mask != 0)


def test_masks_come_from_the_epochs_generator_and_differ_between_passes() -> None:
    model = make_model()

    def masks(seed: int) -> list[Tensor]:
        model.begin_epoch(1, torch.Generator().manual_seed(seed))
        return [pass_of(model)[1].context["mask of text"] for _ in range(2)]

    check_draws(masks)


def test_without_dropout_targets_are_the_rows_themselves() -> None:
    model = make_model("model.dropout=0")
    _, hidden, latent = pass_of(model)
    assert torch.allclose(latent.extra["targets of text"], F.normalize(hidden.sites["text"]))
    assert bool((hidden.context["mask of image"] == 1).all())


def test_gradients_reach_every_parameter_and_only_the_batchs_features() -> None:
    model = make_model()
    batch, _, latent = pass_of(model)
    torch.stack(list(model.loss(latent, batch).values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.is_sparse == name.startswith("features_")
        assert bool((value.grad.to_dense() != 0).any()), name
    for table in tables(model).values():
        assert table.grad is not None
        moved = table.grad.to_dense().abs().sum(1).nonzero().flatten()
        assert moved.tolist() == torch.unique(POSITIVES).tolist()


def test_frozen_features_are_no_parameters_and_give_the_same_loss() -> None:
    trained, frozen = make_model(), make_model("model.trained_features=false")
    assert {f"features_{name}" for name in NAMES} == set(trained.state_dict()) - set(frozen.state_dict())
    losses = []
    for model in (trained, frozen):
        batch, _, latent = pass_of(model)
        losses.append(model.loss(latent, batch))
    assert losses[0] == losses[1]
    losses[1]["modalities"].backward()  # type: ignore[no-untyped-call]
    for name, table in tables(frozen).items():
        assert not table.requires_grad
        assert torch.equal(table, torch.from_numpy(DATASET.features[name].copy()))


def test_training_the_features_leaves_the_data_alone() -> None:
    data = model_data(DATASET)
    model = BM3(BM3.Config.model_validate({}), data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.get_parameter("features_text").zero_()
    assert bool((data.features["text"] != 0).any())


def test_ranking_reads_no_feature_projection_or_mask() -> None:
    model = make_model()
    users, items = model.vectors()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith(("features_", "projection_")):
                value.fill_(math.nan)
    generator = model.current_generator().get_state()
    again = model.vectors()
    assert torch.equal(again[0], users)
    assert torch.equal(again[1], items)
    assert not model.eval().hidden(Rows()).sites
    assert torch.equal(model.current_generator().get_state(), generator)
    all_users, all_items = whole(model)
    scores = predict(model, all_users) @ predict(model, all_items).T
    assert torch.allclose(users @ items.T, scores, rtol=1e-4, atol=1e-5)


def test_rows_of_a_pass_are_rows_of_the_whole() -> None:
    model = make_model().eval()
    rows = Rows(torch.tensor([7, 1]), torch.tensor([3, 30, 0]))
    some = model.towers(model.represent(model.hidden(rows)))
    for part, everything, chosen in zip(some, model.vectors(), (rows.users, rows.items), strict=True):
        assert torch.allclose(part, everything[chosen], atol=1e-6)


def test_initial_values() -> None:
    model = make_model("model.dimension=64")
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == {
        "users": (10, 64),
        "items": (40, 64),
        "predictor.weight": (64, 64),
        "predictor.bias": (64,),
        **{f"features_{name}": (40, width) for name, width in DATASET.modalities.items()},
        **{f"projection_{name}.weight": (64, width) for name, width in DATASET.modalities.items()},
        **{f"projection_{name}.bias": (64,) for name in NAMES},
    }
    for table in (model.users, model.items):
        bound = math.sqrt(6 / sum(table.shape))
        assert 0.9 * bound < table.abs().max().item() <= bound
    for layer in (model.predictor, model.get_submodule("projection_text")):
        assert isinstance(layer, torch.nn.Linear)
        deviation = math.sqrt(2 / sum(layer.weight.shape))
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert layer.weight.abs().max().item() > 2 * deviation  # normal, not uniform
        assert 0.5 < layer.bias.abs().max().item() * math.sqrt(layer.in_features) <= 1
    for name, matrix in tables(model).items():
        assert torch.equal(matrix, torch.from_numpy(DATASET.features[name].copy()))


def test_noise_on_the_initial_embeddings() -> None:
    plain, noisy = make_model("model.dimension=64"), make_model("model.dimension=64", "model.id_noise=0.01")
    for name, value in plain.named_parameters():
        difference = noisy.get_parameter(name) - value
        if name in {"users", "items"}:
            assert difference.std().item() == pytest.approx(0.01, rel=0.1)
        else:
            assert bool((difference == 0).all()), name


def test_nothing_is_drawn_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    make_model("model.id_noise=0.01")
    assert torch.equal(torch.get_rng_state(), state)


def test_one_modality_of_any_name_suffices() -> None:
    dataset = planted_blocks(n_users=10, n_items=40, modalities=["audio"])
    model = build_model(make_config("none", "model.dimension=8", model="bm3"), dataset)
    assert model.site_widths == {"audio": 8}
    model.begin_epoch(1, torch.Generator().manual_seed(0))
    batch = Batch.of(USERS, POSITIVES, NONE)
    hidden = model.train().hidden(batch.rows)
    assert {name: tuple(site.shape) for name, site in hidden.sites.items()} == {"audio": (4, 8)}
    assert model.loss(model.represent(hidden), batch)["modalities"].item() > 0


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="BM3 wants a BM3Config, got ModelConfig"):
        BM3(ModelConfig(), model_data(DATASET), torch.Generator())
    bare = replace(model_data(DATASET), features={})
    with pytest.raises(DataError, match="BM3 needs features of at least one modality, the data set has none; add NAME"):
        BM3(BM3.Config.model_validate({}), bare, torch.Generator())
