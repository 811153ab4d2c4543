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
from training.common.errors import ConfigError
from training.epoch import EpochRunner
from training.models import selfcf
from training.models.base import Batch, Hidden, Latent, ModelConfig, Rows
from training.models.selfcf import SelfCF, dropped_weights

DATASET = planted_blocks(n_users=10, n_items=40)
USERS = torch.tensor([4, 0, 4, 9, 9, 9])
POSITIVES = torch.tensor([8, 0, 10, 3, 3, 8])
NONE = USERS[:0]
Draws = list[tuple[Tensor, Tensor]]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """Rate and kept entries of every training pass."""
    seen: Draws = []

    def record(weights: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
        seen.append((rate, keep))
        return dropped_weights(weights, rate, keep)

    monkeypatch.setattr(selfcf, "dropped_weights", record)
    return seen


def make_model(*overrides: str) -> SelfCF:
    config = make_config("none", "model.dimension=8", "model.regularisation=0.3", *overrides, model="selfcf")
    model = cast("SelfCF", build_model(config, DATASET))
    model.begin_epoch(1, torch.Generator().manual_seed(5))
    return model


def whole(model: SelfCF, rate: float = 0.0, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """u and i of all rows, by a dense matrix without the dropped entries."""
    n_users = DATASET.n_users
    users, items = torch.from_numpy(DATASET.train.users.copy()), torch.from_numpy(DATASET.train.items.copy())
    dense = torch.zeros(n_users + DATASET.n_items, n_users + DATASET.n_items)
    dense[users, n_users + items] = dense[n_users + items, users] = 1.0
    scale = (dense.sum(1) + 1e-7).rsqrt()
    dense = scale[:, None] * dense * scale
    if keep is not None:
        kept = torch.zeros_like(dense)
        kept[model.graph.targets[keep], model.graph.sources[keep]] = 1.0
        dense = dense * kept / (1 - rate)
    layers = [torch.cat([model.users, model.items])]
    for _ in range(model.config.layers):
        layers.append(dense @ layers[-1])
    mean = torch.stack(layers).mean(0)
    return mean[:n_users], mean[n_users:]


def predict(model: SelfCF, x: Tensor) -> Tensor:
    return x @ model.predictor.weight.T + model.predictor.bias


def pass_of(model: SelfCF, *, all_items: bool = False) -> tuple[Batch, Hidden, Latent]:
    batch = Batch.of(USERS, POSITIVES, NONE, all_items=all_items)
    hidden = model.train().hidden(batch.rows)
    return batch, hidden, model.represent(hidden)


@pytest.mark.parametrize("all_items", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_terms_and_gradients_equal_the_specification(all_items: bool, layers: int, draws: Draws) -> None:
    model = make_model(f"model.layers={layers}")
    batch, hidden, latent = pass_of(model, all_items=all_items)
    ours = {**model.loss(latent, batch), "decay": model.decay(latent, batch)}
    # Spec §2.6 with one row per pair, over the graph and under the masks that were drawn.
    users, items = whole(model, draws[0][0].item(), draws[0][1])
    user, item = users[USERS], items[POSITIVES]
    user_target = (user * hidden.context["users"][batch.users]).detach()
    item_target = (item * hidden.context["items"][batch.positives]).detach()
    naive = {
        "cosine": -0.5 * F.cosine_similarity(predict(model, user), item_target).mean()
        - 0.5 * F.cosine_similarity(predict(model, item), user_target).mean(),
        "decay": 0.3 * 0.5 * (user.square().sum() + item.square().sum()),
    }
    assert list(ours) == ["cosine", "decay"]
    names, values = zip(*model.named_parameters(), strict=True)
    for term, value in ours.items():
        assert value.item() == pytest.approx(naive[term].item(), rel=1e-5), term
        grads = [
            torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True) for loss in (value, naive[term])
        ]
        for name, left, right in zip(names, *grads, strict=True):
            assert (left is None) == (right is None) == (term == "decay" and name.startswith("predictor"))
            if left is not None:
                assert torch.allclose(left, right, rtol=1e-4, atol=1e-6), (term, name)


def test_dropped_weights_by_hand() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    keep = torch.tensor([True, False, True])
    assert dropped_weights(weights, torch.tensor(0.75), keep).tolist() == [4, 0, 12]


def test_rates_are_uniform_and_capped(draws: Draws) -> None:
    model = make_model("model.max_edge_dropout=0.6").train()
    rows, passes = Rows(USERS[:1], POSITIVES[:1]), 2000
    for _ in range(passes):
        model.hidden(rows)
    rates = torch.stack([rate for rate, _ in draws])
    cap = torch.tensor(0.6)
    assert len(rates) == passes  # one draw per pass
    assert bool((rates <= cap).all())
    assert (rates == cap).float().mean().item() == pytest.approx(0.4, abs=0.04)
    below = rates[rates < cap] / cap
    quantiles = torch.quantile(below, torch.tensor([0.25, 0.5, 0.75]))
    assert quantiles.tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    kept = torch.stack([keep.float() for _, keep in draws])  # [passes, 2E]
    # A share of entries is kept that follows the pass's rate, entry by entry the same; 4.5 standard errors.
    error = kept.mean(1) - (1 - rates)
    assert bool((error.abs() < 4.5 * (rates * (1 - rates) / kept.shape[1]).sqrt() + 1e-3).all())
    assert kept.mean(0).std().item() < 0.02


def test_the_two_directions_of_an_interaction_are_dropped_independently(draws: Draws) -> None:
    model = make_model("model.max_edge_dropout=0.5").train()
    for _ in range(300):
        model.hidden(Rows(USERS[:1], POSITIVES[:1]))
    entries = {edge: number for number, edge in enumerate(zip(*_ends(model), strict=True))}
    twin = torch.tensor([entries[source, target] for target, source in entries])
    at_cap = torch.stack([keep for rate, keep in draws if rate == 0.5])
    both = (at_cap & at_cap[:, twin]).float().mean().item()
    assert both == pytest.approx(0.25, abs=0.02)


def _ends(model: SelfCF) -> tuple[list[int], list[int]]:
    return model.graph.targets.tolist(), model.graph.sources.tolist()


def test_the_default_rate_never_empties_the_graph() -> None:
    assert SelfCF.Config.model_validate({}).model_dump()["max_edge_dropout"] == 0.95


def test_a_rate_of_zero_is_the_whole_graph() -> None:
    model = make_model("model.max_edge_dropout=0")
    _, hidden, _ = pass_of(model)
    users, items = whole(model)
    assert torch.allclose(hidden.sites["users"], users[hidden.rows.users], atol=1e-6)
    assert torch.allclose(hidden.sites["items"], items[hidden.rows.items], atol=1e-6)


def test_draws_come_from_the_epochs_generator_and_differ_between_passes() -> None:
    model = make_model()

    def outcome(seed: int) -> list[Tensor]:
        model.begin_epoch(1, torch.Generator().manual_seed(seed))
        passes = [pass_of(model)[1] for _ in range(2)]
        return [torch.cat([hidden.sites["users"], hidden.context["users"]]) for hidden in passes]

    check_draws(outcome)


def test_masks_keep_a_share_and_scale_it_up() -> None:
    model = make_model("model.dropout=0.2")
    batch, _, _ = pass_of(model)
    masks = torch.cat([model.hidden(batch.rows).context[name].flatten() for name in ("users", "items") * 50])
    assert torch.unique(masks).tolist() == [0, 1.25]
    assert (masks > 0).float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_nothing_learns_through_a_target() -> None:
    model = make_model()
    batch, _, latent = pass_of(model)
    targets = [value for name, value in latent.extra.items() if name.endswith("targets")]
    assert len(targets) == 2
    assert not any(value.requires_grad for value in targets)
    # A cosine does not change with the length of what is predicted.
    loss = model.loss(latent, batch)["cosine"]
    grads = torch.autograd.grad(loss, [latent.users, latent.items])
    for grad, online in zip(grads, (latent.users, latent.items), strict=True):
        assert torch.allclose((grad * online).sum(1), torch.zeros(len(online)), atol=1e-6)


def test_a_second_pass_sees_the_same_graph_and_masks() -> None:
    config = make_config("constant", "model.dimension=8", "dvib.sigma=0", model="selfcf")
    objective = build_objective(config, DATASET).train()
    _, result = next(iter(EpochRunner(objective, config, DATASET, CPU).steps_of(1)))
    assert result.terms["general_perturbed"].item() == pytest.approx(result.terms["cosine"].item(), rel=1e-6)
    assert result.terms["distillation"].item() == pytest.approx(0, abs=1e-6)


def test_a_perturbed_target_has_the_same_mask() -> None:
    _, hidden, _ = pass_of(make_model())
    sites = {name: site + 1.0 for name, site in hidden.sites.items()}
    noisy = make_model().represent(replace(hidden, sites=sites))
    for name, site in sites.items():
        assert torch.allclose(noisy.extra[f"{name} targets"], F.normalize(site * hidden.context[name]))
        assert noisy.extra[f"encoded {name}"] is site


def test_gradients_reach_every_parameter() -> None:
    model = make_model()
    batch, _, latent = pass_of(model)
    model.loss(latent, batch)["cosine"].backward()  # type: ignore[no-untyped-call]
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert bool((value.grad != 0).any()), name


def test_scores_are_two_inner_products() -> None:
    model = make_model()
    users, items = model.vectors()
    assert users.shape == (10, 16)
    u, i = whole(model)
    expected = predict(model, u) @ i.T + u @ predict(model, i).T
    assert torch.allclose(users @ items.T, expected, rtol=1e-4, atol=1e-6)


def test_rows_of_a_pass_are_rows_of_the_whole_and_nothing_is_drawn() -> None:
    model = make_model().eval()
    state = model.current_generator().get_state()
    rows = Rows(torch.tensor([7, 1]), torch.tensor([3, 30, 0]))
    hidden = model.hidden(rows)
    assert not hidden.context
    some = model.towers(model.represent(hidden))
    for part, everything, chosen in zip(some, model.vectors(), (rows.users, rows.items), strict=True):
        assert torch.allclose(part, everything[chosen], atol=1e-6)
    assert torch.equal(model.current_generator().get_state(), state)


def test_initial_values() -> None:
    state = torch.get_rng_state()
    model = make_model("model.dimension=64")
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == {
        "users": (10, 64),
        "items": (40, 64),
        "predictor.weight": (64, 64),
        "predictor.bias": (64,),
    }
    bounds: list[tuple[Tensor, float]] = [
        (table, math.sqrt(6 / sum(table.shape))) for table in (model.users, model.items)
    ]
    bounds += [(model.predictor.weight, 1 / 8), (model.predictor.bias, 1 / 8)]
    for value, bound in bounds:
        assert 0.9 * bound < value.abs().max().item() <= bound


def test_no_modality_is_needed() -> None:
    bare = replace(model_data(DATASET), features={})
    model = SelfCF(SelfCF.Config.model_validate({}), bare, torch.Generator())
    assert model.vectors()[1].shape == (40, 128)


def test_another_models_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="SelfCF wants a SelfCFConfig, got ModelConfig"):
        SelfCF(ModelConfig(), model_data(DATASET), torch.Generator())
