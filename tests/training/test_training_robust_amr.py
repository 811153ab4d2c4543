"""AMR: the adversary's shift by hand, its loss in the total, and that it composes with every objective."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers_objective import DATASET, STRONG, draw_triples, gradients
from tests.helpers_training import VARIANTS, make_config, planted_blocks, same_tensors, trained
from training.build import build_model, build_objective
from training.common.choices import Variant
from training.common.errors import ConfigError
from training.config import RunConfig
from training.dvib.objective import Objective
from training.evaluation import EvaluationSet, evaluate, evaluate_model, popularity_scorer
from training.models import MODELS
from training.models.base import Batch, Rows
from training.models.vbpr import VBPR
from training.passes import Passes
from training.robust.amr import Adversary
from training.robust.config import RobustConfig

WIDTHS = DATASET.modalities
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
TRIPLES = draw_triples()
ITEMS, PLACES = torch.unique(torch.cat([TRIPLES.positives, TRIPLES.negatives]), return_inverse=True)


def model_and_batch() -> tuple[VBPR, Batch]:
    model = cast("VBPR", build_model(make_config(), DATASET))
    return model, Batch.of(TRIPLES.users, TRIPLES.positives, TRIPLES.negatives)


def bpr(model: VBPR, features: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The task's loss from the features [n_i, F] of ``ITEMS``, written out."""
    users = model.users[TRIPLES.users].to(dtype)
    vectors = torch.cat([model.items[ITEMS], features @ model.weight.T.to(features) + model.bias], dim=1).to(dtype)
    positives, negatives = torch.split(vectors[PLACES], len(TRIPLES.users))
    return F.softplus((users * (negatives - positives)).sum(1)).mean()


def gradient_by_hand(model: VBPR) -> Tensor:
    """∂BPR/∂m [n_i, F] in float64: every triple pulls its two items along ±Wᵀ P_u, weighed by σ(-margin) / B."""
    users, weight = model.users.detach().double(), model.weight.detach().double()
    features = model.features[ITEMS].double()
    vectors = torch.cat([model.items.detach()[ITEMS].double(), features @ weight.T + model.bias.detach()], dim=1)
    result = torch.zeros(len(ITEMS), features.shape[1], dtype=torch.float64)
    n = len(TRIPLES.users)
    for row in range(n):
        user, positive, negative = users[TRIPLES.users[row]], PLACES[row], PLACES[n + row]
        margin = float(user @ (vectors[positive] - vectors[negative]))
        pull = weight.T @ user[len(user) // 2 :] / (1 + math.exp(margin)) / n
        result[positive] -= pull
        result[negative] += pull
    return result


@pytest.mark.parametrize(
    ("modalities", "moved"), [(None, ["image"]), (["text"], ["text"]), (["text", "image"], ["text", "image"])]
)
@pytest.mark.parametrize("epsilon", [0.1, 3.0])
def test_the_shift_is_epsilon_along_the_gradient_in_each_row(
    modalities: list[str] | None, moved: list[str], epsilon: float
) -> None:
    model, batch = model_and_batch()
    chosen = tuple(modalities) if modalities else None
    shift = Adversary(RobustConfig(amr_epsilon=epsilon, amr_modalities=chosen), WIDTHS).shift(Passes(model), batch)
    assert sorted(shift) == sorted(moved)
    assert not any(value.requires_grad for value in shift.values())
    joined = torch.cat([shift[name] for name in moved], dim=1).double()
    assert joined.shape[0] == len(ITEMS)
    assert torch.allclose(joined.norm(dim=1), torch.full((len(ITEMS),), epsilon, dtype=torch.float64), rtol=1e-5)
    whole = dict(zip(model.modalities, torch.split(gradient_by_hand(model), model.widths, dim=1), strict=True))
    wanted = torch.cat([whole[name] for name in moved], dim=1)
    assert torch.allclose(joined, epsilon * wanted / wanted.norm(dim=1, keepdim=True), rtol=1e-3, atol=1e-4 * epsilon)


def test_the_shift_ascends_the_loss_and_nothing_of_its_length_ascends_it_faster() -> None:
    model, batch = model_and_batch()
    adversary = Adversary(RobustConfig(amr_epsilon=0.1, amr_modalities=("image", "text")), WIDTHS)
    shift = adversary.shift(Passes(model), batch)
    delta = torch.cat([shift[name] for name in model.modalities], dim=1).double()
    start = model.features[ITEMS].double()
    with torch.no_grad():
        here = float(bpr(model, start))
        assert float(bpr(model, start + delta)) > here
        assert adversary.loss(Passes(model), batch).item() == pytest.approx(float(bpr(model, start + delta)), rel=1e-5)
        # Central differences: the slope along Δ is the sum over the rows of ε ‖g_i‖, the most that such rows can have.
        step = 1e-4
        slope = float(bpr(model, start + step * delta) - bpr(model, start - step * delta)) / (2 * step)
        assert slope == pytest.approx(0.1 * float(gradient_by_hand(model).norm(dim=1).sum()), rel=1e-4)
        draw = torch.Generator().manual_seed(0)
        for _ in range(50):
            other = torch.randn(delta.shape, generator=draw, dtype=torch.float64)
            other = 0.1 * other / other.norm(dim=1, keepdim=True)
            assert float(bpr(model, start + other)) < float(bpr(model, start + delta))


def test_an_item_without_a_gradient_stays_where_it_is() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        model.users[TRIPLES.users[0]] = 0.0
    shift = Adversary(RobustConfig(), WIDTHS).shift(Passes(model), batch)["image"]
    owners = [torch.unique(TRIPLES.users.repeat(2)[PLACES == place]).tolist() for place in range(len(ITEMS))]  # noqa: SIM300
    alone = [place for place, users in enumerate(owners) if users == [int(TRIPLES.users[0])]]
    assert alone  # such an item is among the batch's
    assert torch.equal(shift[alone], torch.zeros_like(shift[alone]))
    assert bool(shift.isfinite().all())


def test_gradients_whose_squares_vanish_still_have_a_direction() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        model.users.mul_(1e-25)
    shift = Adversary(RobustConfig(), WIDTHS).shift(Passes(model), batch)["image"]
    sizes = gradient_by_hand(model).norm(dim=1)
    some = sizes > 1e-3 * sizes.max()  # at no margin, a user's positive and negative pull on one item cancel
    assert int(some.sum()) > 0
    assert torch.allclose(shift[some].norm(dim=1), torch.tensor(0.1), rtol=1e-4)


def one_step(objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    batch = objective.batch(TRIPLES.users, TRIPLES.positives, TRIPLES.negatives)
    objective.model.begin_epoch(1, torch.Generator().manual_seed(0))
    result = objective.step(batch, torch.Generator().manual_seed(11))
    return result.total, dict(result.terms)


@EVERY_VARIANT
@pytest.mark.parametrize("rows", ["batch", "all"])
def test_the_total_is_the_objectives_own_and_the_weighted_loss_on_moved_features(variant: Variant, rows: str) -> None:
    settings = (*STRONG, f"dvib.rows={rows}", "dvib.entropy=0.2")
    config = make_config(variant, *settings, "robust.amr=true", "robust.amr_weight=0.7", "robust.amr_epsilon=0.5")
    objective, own = build_objective(config, DATASET), build_objective(make_config(variant, *settings), DATASET)
    total, terms = one_step(objective)
    own_total, own_terms = one_step(own)
    model = cast("VBPR", objective.model)
    gradient = gradient_by_hand(model)
    image = dict(zip(model.modalities, torch.split(gradient, model.widths, dim=1), strict=True))["image"]
    delta = torch.zeros_like(gradient)
    delta[:, : image.shape[1]] = 0.5 * image / image.norm(dim=1, keepdim=True)  # image comes first
    adversarial = bpr(model, (model.features[ITEMS].double() + delta).float())
    assert terms.pop("adversarial").item() == pytest.approx(adversarial.item(), rel=1e-5)
    assert same_tensors(terms, own_terms)
    assert total.item() == pytest.approx(own_total.item() + 0.7 * adversarial.item(), rel=1e-5)
    # Δ is a constant: nothing flows back through it.
    expected, extra = gradients(own_total, own), gradients(adversarial, objective)
    for name, found in gradients(total, objective).items():
        assert torch.allclose(found, expected[name] + 0.7 * extra[name], rtol=1e-3, atol=2e-6), name


@EVERY_VARIANT
def test_at_weight_zero_it_trains_the_same_model_bit_for_bit(monkeypatch: pytest.MonkeyPatch, variant: Variant) -> None:
    calls: list[int] = []
    original = Adversary.loss

    def spy(self: Adversary, passes: Passes, batch: Batch) -> Tensor:
        calls.append(1)
        return original(self, passes, batch)

    monkeypatch.setattr(Adversary, "loss", spy)
    without, idle, acting = (
        trained(make_config(variant, "dvib.sigma=0.2", *more), DATASET, 2).state_dict()
        for more in ((), ("robust.amr=true", "robust.amr_weight=0"), ("robust.amr=true",))
    )
    assert calls
    assert same_tensors(without, idle)
    assert without.keys() == acting.keys()  # it adds nothing that is saved, exported or stripped
    assert not same_tensors(without, acting)


@EVERY_VARIANT
def test_with_it_the_model_learns_and_its_loss_weighs_more(variant: Variant) -> None:
    dataset = planted_blocks()
    config = make_config(variant, "training.learning_rate=0.03", "robust.amr=true")
    objective = trained(config, dataset, 12)
    data = EvaluationSet.of(dataset, "test")
    metrics = evaluate_model(objective.model, data, dataset.n_items, (10,))
    popular = evaluate(popularity_scorer(dataset), data, dataset.n_items, (10,))
    assert metrics["ndcg@10"] > 2 * popular["ndcg@10"]


def test_what_cannot_be_moved_is_refused_with_what_can() -> None:
    able = [name for name, cls in MODELS.items() if cls.shifts_features]
    assert "vbpr" in able
    for name in set(MODELS) - set(able):
        with pytest.raises(ConfigError, match=rf"robust\.amr=true.*{name} .*models that do: vbpr"):
            make_config("none", "robust.amr=true", model=name)
    with pytest.raises(ConfigError, match=r"amr_modalities.*no modality 'imag'.*did you mean 'image'"):
        build_objective(make_config("none", "robust.amr=true", "robust.amr_modalities=[imag]"), DATASET)
    silent = planted_blocks(n_users=12, n_items=40, modalities=("audio", "text"))
    objective = build_objective(make_config("none", "robust.amr=true"), silent)
    assert objective.adversary is not None
    assert objective.adversary.widths == silent.modalities  # no images: everything is moved
    model, _ = model_and_batch()
    everything = Batch.of(TRIPLES.users, TRIPLES.positives, TRIPLES.negatives, all_items=True)
    with pytest.raises(ValueError, match="of_its_items"):
        Adversary(RobustConfig(), WIDTHS).shift(Passes(model), everything)


def test_a_batch_over_all_items_becomes_one_over_its_own() -> None:
    users, positives, negatives = torch.tensor([7, 2, 7]), torch.tensor([9, 4, 4]), torch.tensor([0, 9, 30])
    narrow = Batch.of(users, positives, negatives)
    found = Batch.of(users, positives, negatives, all_items=True).of_its_items()
    assert narrow.of_its_items() is narrow
    for wanted in (narrow, found):
        assert wanted.rows.users is not None
        assert wanted.rows.items is not None
        assert wanted.rows.users[wanted.users].tolist() == [7, 2, 7]
        assert wanted.rows.items[wanted.positives].tolist() == [9, 4, 4]
        assert wanted.rows.items[wanted.negatives].tolist() == [0, 9, 30]
        assert wanted.rows.items.tolist() == [0, 4, 9, 30]
    everybody = Batch(Rows(), users, positives, negatives).of_its_items()
    assert everybody.rows.users is not None
    assert everybody.rows.users[everybody.users].tolist() == [7, 2, 7]


def test_a_shift_moves_the_given_items_of_the_given_modalities() -> None:
    model, _ = model_and_batch()
    rows = Rows(torch.tensor([0]), torch.tensor([3, 9]))
    still = model.hidden(rows).sites["fused"]
    offset = torch.zeros(2, WIDTHS["text"])
    offset[1, 2] = 5.0
    moved = model.hidden(replace(rows, shift={"text": offset})).sites["fused"]
    assert torch.equal(moved[0], still[0])
    column = model.modalities.index("text") and WIDTHS["image"]
    assert torch.allclose(moved[1] - still[1], 5 * model.weight[:, column + 2], atol=1e-5)
    zero = model.hidden(replace(rows, shift={name: torch.zeros(2, width) for name, width in WIDTHS.items()}))
    assert torch.equal(zero.sites["fused"], still)


def test_a_configuration_from_before_has_them_switched_off() -> None:
    document = make_config("adaptive").model_dump(mode="json")
    del document["robust"], document["dvib"]["gamma_l0"], document["data"]["transforms"]
    del document["data"]["transform_seed"]
    config = RunConfig.model_validate(document)
    assert config == make_config("adaptive")
    assert (config.robust.amr, config.robust.mg) == (False, False)
