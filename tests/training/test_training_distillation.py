from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers_objective import DATASET, STRONG, Triples, draw_triples, entropy_term, gradients, step
from tests.helpers_training import make_config, ready
from training.build import build_objective
from training.common.choices import Variant
from training.common.errors import ConfigError
from training.data.dataset import Dataset, Interactions
from training.dvib import distillation as module
from training.dvib import objective as objective_module
from training.dvib.objective import DvibObjective
from training.models import MODELS
from training.models.base import Batch, Hidden, Latent


def cold(*, n_cold: int) -> tuple[Dataset, list[int]]:
    """The data set without the training interactions of its last items, and the items that are left in training."""
    train = DATASET.train
    keep = train.items < 40 - n_cold
    part = Interactions(train.users[keep].copy(), train.items[keep].copy())
    return replace(DATASET, splits={**DATASET.splits, "train": part}), sorted(set(part.items.tolist()))


@pytest.mark.parametrize("variant", ["none", "adaptive"])
@pytest.mark.parametrize("candidates", ["training", "all"])
def test_candidates_are_the_items_of_training_or_all(variant: Variant, candidates: str) -> None:
    dataset, left = cold(n_cold=9)
    assert len(left) <= 31
    config = make_config(
        variant, "dvib.rows=all", "dvib.distil_on=scores", "dvib.entropy=0.5", f"dvib.candidates={candidates}"
    )
    objective = build_objective(config, dataset)
    triples = draw_triples()
    triples = Triples(triples.users, torch.tensor(left)[triples.positives % 31], triples.negatives % 31)
    result = step(objective, triples)
    with torch.no_grad():
        users, items = objective.model.vectors()
    among = left if candidates == "training" else list(range(40))
    expected = entropy_term(users[triples.users] @ items[among].T)
    assert result.terms["entropy"].item() == pytest.approx(expected.item(), rel=1e-4)
    grads = gradients(result.total, objective)["model.items"]
    untouched = [bool((grads[item] == 0).all()) for item in range(31, 40)]
    # The id half of a cold item is moved by nothing but a softmax that it stands in.
    assert all(untouched) if candidates == "training" else not any(untouched)


def test_the_entropy_of_a_plain_model_needs_no_second_pass_and_costs_nothing_at_weight_zero() -> None:
    triples = draw_triples()
    plain = step(build_objective(make_config("none"), DATASET), triples)
    with_term = step(build_objective(make_config("none", "dvib.entropy=0.3"), DATASET), triples)
    assert "entropy" not in plain.terms
    assert set(with_term.terms) == {*plain.terms, "entropy"}
    expected = plain.total.item() + 0.3 * with_term.terms["entropy"].item()
    assert with_term.total.item() == pytest.approx(expected, rel=1e-6)
    assert with_term.terms["entropy"].item() > 0


def test_a_step_down_the_entropy_term_flattens_the_scores() -> None:
    objective, triples = build_objective(make_config("none", "dvib.entropy=1"), DATASET), draw_triples()
    batch = objective.batch(triples.users, triples.positives, triples.negatives)

    def value() -> Tensor:
        return objective.entropy(objective.model.represent(objective.model.hidden(batch.rows)), batch)

    before = value()
    for parameter, grad in zip(
        objective.parameters(), torch.autograd.grad(before, list(objective.parameters())), strict=True
    ):
        parameter.data -= grad
    assert value() < before


@pytest.mark.parametrize("variant", ["none", "constant"])
def test_sampled_items_widen_the_softmax_and_leave_the_triples_alone(
    monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    dataset, left = cold(n_cold=9)
    widths: list[int] = []
    original = module.over_scores

    def spy(function: Any, passes: Any, weights: Tensor) -> Tensor:
        widths.append(len(passes[0][1]))
        return original(function, passes, weights)

    monkeypatch.setattr(objective_module, "over_scores", spy)
    few = Triples(torch.tensor([0, 1, 0]), torch.tensor([3, 8, 5]), torch.tensor([8, 1, 3]))
    results = []
    for sampled in (0, 500):
        config = make_config(variant, "dvib.entropy=0.5", "dvib.sigma=0", f"dvib.sampled_items={sampled}")
        results.append(step(build_objective(config, dataset), few))
    assert widths == [4, len(left)]  # five hundred draws meet every training item, and no other
    for name in ("bpr", "decay"):
        assert results[0].terms[name].item() == pytest.approx(results[1].terms[name].item(), rel=1e-5)
    assert results[0].terms["entropy"].item() != results[1].terms["entropy"].item()


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_counts_the_batch_whatever_other_rows_take_part(name: str) -> None:
    # Without dropout: its masks are drawn for the rows, so that other rows shift the draws.
    still = {"bm3": ("model.dropout=0",), "selfcf": ("model.dropout=0", "model.max_edge_dropout=0")}
    weight = "model.modality_loss=0.3" if name == "freedom" else "model.regularisation=0.3"
    objective = build_objective(make_config("none", weight, *still.get(name, ()), model=name), DATASET)
    triples = draw_triples()
    negatives = triples.negatives if objective.model.samples_negatives else triples.negatives[:0]
    few = Batch.of(triples.users, triples.positives % 20, negatives % 20)
    more = module.with_sampled_items(few, torch.arange(40), 30, torch.Generator().manual_seed(1))
    every = Batch.of(triples.users, triples.positives % 20, negatives % 20, all_items=True)
    found = []
    for batch in (few, more, every):
        ready(objective)
        latent = objective.model.represent(objective.model.hidden(batch.rows))
        found.append({term: value.item() for term, value in objective.general(latent, batch).items()})
    assert len(found[0]) == 2 + (name == "bm3")
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_sampled_items_are_drawn_from_the_noise_generator_anew() -> None:
    batch = Batch.of(torch.tensor([0]), torch.tensor([2]), torch.tensor([7]))
    pool, generator = torch.arange(10, 1000), torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    first, second = (module.with_sampled_items(batch, pool, 20, generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.rows.items is not None
    assert second.rows.items is not None
    assert not torch.equal(first.rows.items, second.rows.items)
    assert [first.rows.items[first.positives].item(), first.rows.items[first.negatives].item()] == [2, 7]


def test_the_perturbed_pass_counts_the_named_terms_only() -> None:
    triples = draw_triples()
    terms = step(
        build_objective(make_config("constant", *STRONG, "dvib.perturbed_terms=[bpr]"), DATASET), triples
    ).terms
    assert terms["general_perturbed"].item() == pytest.approx(
        step(build_objective(make_config("constant", *STRONG), DATASET), triples).terms["general_perturbed"].item()
    )
    objective = build_objective(make_config("constant", "dvib.perturbed_terms=[bpr]"), DATASET)
    loss = objective.model.loss
    objective.model.loss = lambda *a: {**loss(*a), "more": torch.tensor(5.0)}  # type: ignore[method-assign]
    terms = step(objective, triples).terms
    assert terms["more"].item() == 5
    assert terms["general_perturbed"].item() == pytest.approx(terms["bpr"].item(), rel=0.1)
    wrong = build_objective(make_config("constant", "dvib.perturbed_terms=[bpl]"), DATASET)
    with pytest.raises(ConfigError, match=r"dvib\.perturbed_terms: .*no loss term 'bpl'; did you mean 'bpr'\?"):
        step(wrong, triples)


def test_a_perturbation_that_reaches_nothing_compared_is_refused_or_logged_as_zero() -> None:
    # BM3's places are the projections of its modalities; its users and items are the same tensors in both passes.
    triples = draw_triples()
    triples = Triples(triples.users, triples.positives, triples.negatives[:0])
    message = r"perturbation \(of image, text\) reaches nothing that dvib\.distil_on=scores compares; .*gamma_d=0"
    with pytest.raises(ConfigError, match=message):
        step(build_objective(make_config("constant", "dvib.distil_on=scores", model="bm3"), DATASET), triples)
    dead = make_config("constant", "dvib.distil_on=scores", "dvib.gamma_d=0", model="bm3")
    terms = step(build_objective(dead, DATASET), triples).terms
    assert (terms["distillation"].item(), terms["js"].item()) == (0, 0)
    alive = make_config("constant", "dvib.sigma=0.5", model="bm3")
    assert step(build_objective(alive, DATASET), triples).terms["distillation"].item() > 1e-4


@pytest.mark.parametrize("model", ["bm3", "selfcf"])
def test_a_shared_net_phi_serves_all_places_of_its_width(model: str) -> None:
    shared, separate = (
        build_objective(make_config("adaptive", f"dvib.net_phi={kind}", model=model), DATASET)
        for kind in ("shared", "separate")
    )
    assert isinstance(shared, DvibObjective)
    assert isinstance(separate, DvibObjective)
    assert len(set(shared.model.site_widths.values())) == 1
    assert len(shared.net_phi) == 1
    assert len(separate.net_phi) == len(separate.model.site_widths) == 2


def test_a_weight_of_zero_costs_no_backward_pass_but_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    triples = draw_triples()
    config = make_config("adaptive", "dvib.gamma_0=0", "dvib.gamma_d=0", "dvib.gamma_r=0")
    objective = build_objective(config, DATASET)
    represent, recorded = objective.model.represent, []

    def spy(hidden: Hidden) -> Latent:
        recorded.append(torch.is_grad_enabled())
        return represent(hidden)

    monkeypatch.setattr(objective.model, "represent", spy)
    result = step(objective, triples)
    assert recorded == [True, False]
    result.total.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is None for value in objective.own_parameters().values())
    assert {"general_perturbed", "distillation", "js", "variational", "phi_mean"} <= set(result.terms)
    assert result.terms["variational"].item() > 0


def test_a_divergence_for_the_log_alone_is_that_of_few_users_evenly_chosen() -> None:
    users, items, weights = torch.randn(10, 3), torch.randn(7, 3), torch.arange(10.0) / 45
    ((few, same),), kept = module.some_users(((users, items),), weights, 4)
    assert torch.equal(few, users[[0, 3, 6, 9]])
    assert same is items
    assert kept.tolist() == pytest.approx([0, 3 / 18, 6 / 18, 9 / 18])
