"""What every model promises, with and without DVIB. A new model gets one line in ``cases.py``."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.graphs import FullGraph
from tests.contract.cases import CASES
from tests.helpers_training import (
    CPU,
    VARIANTS,
    WIDTHS,
    make_config,
    planted_blocks,
    ready,
    same_tensors,
    trained,
    whole_batch,
)
from training import evaluation
from training.build import build_model, build_objective
from training.checkpoint import CheckpointInfo, DatasetInfo, load_checkpoint, save_checkpoint, save_dataset, versions
from training.common.choices import Preset, Variant
from training.common.errors import DataError
from training.config import RunConfig
from training.data.dataset import Dataset
from training.dvib.objective import Objective
from training.epoch import EpochRunner
from training.evaluation import EvaluationSet, evaluate_model, vector_scorer
from training.models import MODELS
from training.models.base import Recommender, Rows

DATASET = planted_blocks()
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
EPOCHS = 12
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(sorted(WIDTHS), size)]


def config_of(name: str, variant: Variant, *overrides: str, preset: Preset = "paper") -> RunConfig:
    return make_config(variant, *CASES[name].overrides, *overrides, preset=preset, model=name)


class Results(dict[tuple[str, Variant], Objective]):
    """Every model in every variant, trained when it is first asked for; nobody changes them."""

    def __missing__(self, key: tuple[str, Variant]) -> Objective:
        self[key] = trained(config_of(*key), DATASET, EPOCHS)
        return self[key]


@pytest.fixture(scope="module")
def results() -> Results:
    return Results()


def scores_of(model: Recommender) -> Tensor:
    with torch.no_grad():
        users, items = model.vectors()
    return users @ items.T


@EVERY_MODEL
@EVERY_VARIANT
def test_each_user_prefers_its_own_block(results: Results, name: str, variant: Variant) -> None:
    scores = scores_of(results[name, variant].model)
    own = (torch.arange(DATASET.n_users)[:, None] % 2) == (torch.arange(DATASET.n_items)[None, :] % 2)
    training = torch.zeros_like(own)
    training[torch.from_numpy(DATASET.train.users.copy()), torch.from_numpy(DATASET.train.items.copy())] = True
    new = ~training
    # Among items the user has not seen: how often does one of its own block stand above one of the other block?
    shares = []
    for user in range(DATASET.n_users):
        mine, other = scores[user, own[user] & new[user]], scores[user, ~own[user] & new[user]]
        shares.append((mine[:, None] > other[None, :]).double().mean().item())
    assert np.mean(shares) > 0.85
    assert min(shares) > 0.6
    start = scores_of(build_model(config_of(name, variant), DATASET))
    before = (start * torch.where(own, 1.0, -1.0)).mean()
    assert (scores * torch.where(own, 1.0, -1.0)).mean() > before + 0.1  # learned, not built in


@EVERY_MODEL
@EVERY_VARIANT
def test_training_beats_popularity_on_the_test_split(results: Results, name: str, variant: Variant) -> None:
    data = EvaluationSet.of(DATASET, "test")
    metrics = evaluate_model(results[name, variant].model, data, DATASET.n_items, (10,))
    popular = evaluation.evaluate(evaluation.popularity_scorer(DATASET), data, DATASET.n_items, (10,))
    assert metrics["ndcg@10"] > 2 * popular["ndcg@10"]


@EVERY_MODEL
@EVERY_VARIANT
def test_ranking_scores_are_the_inner_products_of_the_vectors(results: Results, name: str, variant: Variant) -> None:
    with torch.no_grad():
        users, items = results[name, variant].model.vectors()
    assert users.shape[0] == DATASET.n_users
    assert items.shape[0] == DATASET.n_items
    assert users.shape[1] == items.shape[1]
    assert users.dtype == items.dtype == torch.float32
    assert bool(users.isfinite().all() & items.isfinite().all())
    rows = torch.tensor([3, 0, 3, DATASET.n_users - 1])
    block = vector_scorer(users, items)(rows)
    for position, user in enumerate(rows.tolist()):
        naive = [(users[user].double() * items[item].double()).sum().item() for item in range(DATASET.n_items)]
        assert block[position].tolist() == pytest.approx(naive, rel=1e-5, abs=1e-5 * max(map(abs, naive)))


@EVERY_MODEL
def test_a_pass_over_some_rows_gives_those_rows_of_the_whole(results: Results, name: str) -> None:
    model = results[name, "none"].model.eval()
    users, items = torch.tensor([1, 5, 20]), torch.tensor([0, 7, 8, 59])
    with torch.no_grad():
        whole = model.vectors()
        some = model.towers(model.represent(model.hidden(Rows(users, items))))
    assert torch.allclose(some[0], whole[0][users], rtol=1e-5, atol=1e-6)
    assert torch.allclose(some[1], whole[1][items], rtol=1e-5, atol=1e-6)


@EVERY_MODEL
@EVERY_VARIANT
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_the_gradient_reaches_every_learned_parameter(name: str, variant: Variant, preset: Preset) -> None:
    config = config_of(name, variant, preset=preset)
    objective = ready(build_objective(config, DATASET))
    result = objective.step(whole_batch(objective, DATASET, config), torch.Generator().manual_seed(0))
    result.total.backward()  # type: ignore[no-untyped-call]
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, parameter_name
        gradient = parameter.grad.to_dense()
        assert bool(gradient.isfinite().all()), parameter_name
        if parameter_name not in CASES[name].idle:
            assert float(gradient.abs().max()) > 1e-8, parameter_name  # more than what rounding leaves of a zero
        elif variant == "none":
            assert float(gradient.abs().max()) < 1e-8, parameter_name


@EVERY_MODEL
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_both_passes_have_the_shapes_that_the_contract_names(name: str, preset: Preset) -> None:
    config = config_of(name, "constant", preset=preset)
    objective = ready(build_objective(config, DATASET))
    model = objective.model
    users, items = torch.tensor([1, 5, 20]), torch.tensor([0, 7, 8, 59])
    hidden = model.hidden(Rows(users, items))
    assert {site: value.shape[1] for site, value in hidden.sites.items()} == dict(model.site_widths)
    latent = model.represent(hidden)
    assert (len(latent.users), len(latent.items)) == (3, 4)
    assert all(len(value) == 4 for value in latent.modalities.values())
    towers = model.towers(latent)
    assert [len(side) for side in towers] == [3, 4]
    assert towers[0].shape[1] == towers[1].shape[1] == model.vectors()[0].shape[1]
    batch = whole_batch(objective, DATASET, config)
    latent = model.represent(model.hidden(batch.rows))
    terms = model.loss(latent, batch)
    decay = model.decay(latent, batch)
    assert terms
    for value in (*terms.values(), *([] if decay is None else [decay])):
        assert value.shape == ()
        assert bool(value.isfinite())


@EVERY_MODEL
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_the_second_pass_over_the_same_hidden_state_sees_the_same_draws(name: str, preset: Preset) -> None:
    config = config_of(name, "constant", preset=preset)
    objective = ready(build_objective(config, DATASET))
    model, batch = objective.model, whole_batch(objective, DATASET, config)
    hidden = model.hidden(batch.rows)
    first, second = (model.loss(model.represent(hidden), batch) for _ in range(2))
    assert same_tensors(first, second)
    draw = torch.Generator().manual_seed(1)
    shifted = replace(
        hidden,
        sites={site: value + 0.1 * torch.randn(value.shape, generator=draw) for site, value in hidden.sites.items()},
    )
    moved = model.loss(model.represent(shifted), batch)
    # A site that moves no term of the loss would make the perturbation a no-op.
    assert any(not torch.equal(first[term], moved[term]) for term in first)


@EVERY_MODEL
@pytest.mark.parametrize("variant", ["constant", "adaptive"])
def test_the_wrapper_leaves_the_model_and_its_inference_alone(results: Results, name: str, variant: Variant) -> None:
    wrapped = results[name, variant].model
    bare = build_model(config_of(name, "none"), DATASET)
    assert type(wrapped) is type(bare)
    tensors = wrapped.state_dict()
    assert tensors.keys() == bare.state_dict().keys()
    assert [value.shape for value in tensors.values()] == [value.shape for value in bare.state_dict().values()]
    bare.load_state_dict(tensors)
    state = torch.get_rng_state()
    for _ in range(2):
        for left, right in zip(wrapped.vectors(), bare.vectors(), strict=True):
            assert torch.equal(left, right)
    assert torch.equal(torch.get_rng_state(), state)  # inference draws nothing


@EVERY_MODEL
def test_every_variant_starts_from_the_same_model(name: str) -> None:
    starts = [build_objective(config_of(name, variant), DATASET).model.state_dict() for variant in VARIANTS]
    assert same_tensors(starts[0], starts[1])
    assert same_tensors(starts[0], starts[2])
    other = build_model(config_of(name, "none", "training.seed=1"), DATASET).state_dict()
    assert not same_tensors(starts[0], other)


@EVERY_MODEL
@EVERY_VARIANT
def test_the_same_seed_trains_the_same_model(results: Results, name: str, variant: Variant) -> None:
    again = trained(config_of(name, variant), DATASET, EPOCHS)
    assert same_tensors(again.state_dict(), results[name, variant].state_dict())


@EVERY_MODEL
@EVERY_VARIANT
def test_a_checkpoint_gives_back_the_same_model(results: Results, tmp_path: Path, name: str, variant: Variant) -> None:
    objective, config = results[name, variant], config_of(name, variant)
    info = CheckpointInfo(
        config=config, dataset=DatasetInfo.of(DATASET), epoch=EPOCHS, metrics={}, history=[], versions=versions()
    )
    save_dataset(DATASET, tmp_path / "data")
    own = {key: value for key, value in objective.state_dict().items() if not key.startswith("model.")}
    save_checkpoint(tmp_path / "best", info, objective.model.state_dict(), own, tmp_path / "data")
    found = load_checkpoint(tmp_path)
    model = build_model(found.info.config, found.dataset)
    model.load_state_dict(found.model)
    for left, right in zip(model.eval().vectors(), objective.model.vectors(), strict=True):
        assert torch.equal(left, right)


@EVERY_MODEL
@EVERY_VARIANT
def test_evaluation_does_not_depend_on_the_order_or_number_of_users_at_once(
    monkeypatch: pytest.MonkeyPatch, results: Results, name: str, variant: Variant
) -> None:
    model, data = results[name, variant].model, EvaluationSet.of(DATASET, "test")
    expected = evaluate_model(model, data, DATASET.n_items, (5, 10, 20))
    shuffled = replace(data, users=data.users[torch.randperm(len(data.users))])
    assert evaluate_model(model, shuffled, DATASET.n_items, (5, 10, 20)) == pytest.approx(expected, rel=1e-12)
    for users_at_once in (1, 5):
        monkeypatch.setattr(evaluation, "_BLOCK_SCORES", users_at_once * DATASET.n_items)
        assert evaluate_model(model, data, DATASET.n_items, (5, 10, 20)) == pytest.approx(expected, rel=1e-12)


@EVERY_MODEL
@pytest.mark.parametrize("modalities", SUBSETS)
def test_any_set_of_modalities_trains(name: str, modalities: tuple[str, ...]) -> None:
    dataset = planted_blocks(n_users=8, n_items=40, modalities=modalities)
    config = config_of(name, "adaptive")
    objective = build_objective(config, dataset)
    means = EpochRunner(objective, config, dataset, CPU).run(1)
    assert np.isfinite(means["total"])
    users, items = objective.model.vectors()
    assert (len(users), len(items)) == (8, 40)
    # Every modality counts, at least through training: other features give other items.
    rolled = [
        replace(dataset, features={**dataset.features, modality: np.roll(dataset.features[modality], 1, axis=0)})
        for modality in modalities
    ]
    for changed in rolled:
        other = trained(config, changed, 1).model.vectors()[1]
        assert torch.equal(other, items) != CASES[name].needs_modality


@EVERY_MODEL
@EVERY_VARIANT
def test_no_modality_at_all_is_refused_with_advice_by_models_that_need_one(name: str, variant: Variant) -> None:
    dataset: Dataset = replace(DATASET, features={})
    config = config_of(name, variant)
    if not CASES[name].needs_modality:
        assert np.isfinite(EpochRunner(build_objective(config, dataset), config, dataset, CPU).run(1)["total"])
        return
    with pytest.raises(DataError, match=r"modality.*add NAME_feat\.npy"):
        build_objective(config, dataset)


@EVERY_MODEL
def test_a_batch_of_users_scores_as_each_user_alone(results: Results, name: str) -> None:
    graph = FullGraph(results[name, "adaptive"].model).eval()
    users = torch.tensor([3, 0, 3, 17])
    with torch.no_grad():
        together = graph(users)
        for position, user in enumerate(users):
            assert torch.allclose(graph(user[None])[0], together[position], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@EVERY_MODEL
def test_a_gpu_computes_what_the_cpu_computes(results: Results, name: str) -> None:
    model = results[name, "none"].model
    here = [side.detach() for side in model.vectors()]
    there = [side.detach().cpu() for side in copy.deepcopy(model).cuda().vectors()]
    for left, right in zip(here, there, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-5 * float(left.abs().max()))


def test_every_model_has_a_case() -> None:
    assert set(CASES) == set(MODELS)
