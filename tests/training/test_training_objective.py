from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tests.helpers_training import make_config, planted_blocks, ready
from training.build import build_objective
from training.common.choices import Preset, Variant
from training.common.errors import ConfigError
from training.config import RunConfig
from training.data.dataset import Dataset, Interactions
from training.dvib import distillation as module
from training.dvib import objective as objective_module
from training.dvib.divergence import jensen_shannon
from training.dvib.objective import DvibObjective, Objective, StepLoss
from training.dvib.perturbation import NetPhi
from training.models import MODELS
from training.models.base import Batch, Hidden, Latent
from training.models.vbpr import VBPR

DATASET = planted_blocks(n_users=12, n_items=40)
DVIB: tuple[Variant, ...] = ("constant", "adaptive")


@dataclass(frozen=True)
class Triples:
    users: Tensor
    positives: Tensor
    negatives: Tensor


def draw_triples(n: int = 30) -> Triples:
    generator = torch.Generator().manual_seed(3)
    # Few users, so that they repeat.
    return Triples(*(torch.randint(high, (n,), generator=generator) for high in (5, 40, 40)))


def step(objective: Objective, triples: Triples, seed: int = 11) -> StepLoss:
    batch = objective.batch(triples.users, triples.positives, triples.negatives)
    objective.model.begin_epoch(1, torch.Generator().manual_seed(0))
    return objective.step(batch, torch.Generator().manual_seed(seed))


def gradients(total: Tensor, objective: Objective) -> dict[str, Tensor]:
    names, values = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(total, values, allow_unused=True)
    return {name: torch.zeros(()) if grad is None else grad for name, grad in zip(names, found, strict=True)}


# --- Algorithm 1, written out for VBPR from the paper, spec §2.1, §3 and §4: one row per triple, nothing shared. ---


def js(clean: Tensor, noisy: Tensor) -> Tensor:
    log_p, log_q = clean.log_softmax(1), noisy.log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    kl = [F.kl_div(log_m, log_x, reduction="none", log_target=True).sum(1) for log_x in (log_p, log_q)]
    return (0.5 * (kl[0] + kl[1])).mean()


def entropy_like(clean: Tensor, noisy: Tensor) -> Tensor:
    p, q = clean.softmax(1), noisy.softmax(1)
    m = (p + q) / 2
    parts = [(m * (m.log() - x.log_softmax(1))).sum(1).mean() for x in (p, q)]
    return 0.5 * (parts[0] + parts[1])


def kl(first: Tensor, second: Tensor) -> Tensor:
    return F.kl_div(second.log_softmax(1), first.log_softmax(1), reduction="none", log_target=True).sum(1).mean()


def entropy_term(scores: Tensor) -> Tensor:
    p = scores.softmax(1)
    return (torch.log(torch.tensor(float(scores.shape[1]))) + (p * p.log()).sum(1)).mean()


def emb_loss(config: RunConfig, parts: tuple[Tensor, ...]) -> Tensor:
    norms = sum((torch.norm(part) for part in parts), torch.zeros(()))
    return float(config.model["regularisation"]) * norms / len(parts[0])


def naive_total(objective: DvibObjective, config: RunConfig, triples: Triples, seed: int = 11) -> Tensor:
    model, dvib = cast("VBPR", objective.model), config.dvib
    raw = torch.cat([torch.from_numpy(matrix.copy()) for matrix in DATASET.features.values()], dim=1)
    projected = raw @ model.weight.T + model.bias  # [I, d]
    rows = torch.arange(40)
    if dvib.rows == "batch":
        rows = torch.unique(torch.cat([triples.positives, triples.negatives]))
    hidden = projected[rows]
    if dvib.variant == "adaptive":
        phi = cast("NetPhi", next(iter(objective.net_phi.values())))(hidden)
    else:
        phi = torch.full((len(rows), 1), dvib.sigma)
    noise = torch.empty_like(hidden).normal_(generator=torch.Generator().manual_seed(seed))
    place = {int(row): position for position, row in enumerate(rows)}

    def one_pass(site: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns BPR, the weight decay, and the items' representations."""
        latent = torch.cat([model.items[rows], site], dim=1)
        users = model.users[triples.users]
        positive = latent[[place[int(item)] for item in triples.positives]]
        negative = latent[[place[int(item)] for item in triples.negatives]]
        bpr = -torch.sigmoid((users * positive).sum(1) - (users * negative).sum(1)).log().mean()
        return bpr, emb_loss(config, (users, positive, negative)), latent

    clean, noisy = one_pass(hidden), one_pass(hidden + phi * noise)
    general = clean[0] + clean[1]
    general_noisy = noisy[0] + noisy[1] if dvib.decay_both else noisy[0]
    divergence: Callable[[Tensor, Tensor], Tensor] = {
        "js": js,
        "ref_entropy": entropy_like,
        "kl_forward": kl,
        "kl_reverse": lambda p, q: kl(q, p),
    }[dvib.divergence]
    if dvib.distil_on == "features":
        distillation = divergence(clean[2], noisy[2])
    else:
        users = model.users[triples.users]  # duplicates kept: the plain mean over the batch's rows
        distillation = divergence(users @ clean[2].T, users @ noisy[2].T)
    if dvib.mix == "convex":
        total = (1 - dvib.gamma_d) * (general + dvib.gamma_0 * general_noisy) + dvib.gamma_d * distillation
    else:
        total = general + dvib.gamma_0 * general_noisy + dvib.gamma_d * distillation
    if dvib.variant == "adaptive":
        a = torch.tensor(dvib.prior)
        if dvib.regulariser == "kl_std":
            regulariser = kl_divergence(Normal(hidden, phi), Normal(0.0, a)).mean()
        else:
            deviation = phi if dvib.phi_is == "std" else phi.sqrt()
            regulariser = kl_divergence(Normal(hidden, deviation), Normal(0.0, a.sqrt())).mean()
        total = total + dvib.gamma_r * regulariser
    if dvib.entropy:
        total = total + dvib.entropy * entropy_term(model.users[triples.users] @ clean[2].T)
    return total


STRONG = ("model.regularisation=0.6", "dvib.sigma=0.3", "dvib.gamma_d=0.4", "dvib.gamma_0=0.7", "dvib.gamma_r=0.2")
CASES: list[tuple[Preset, tuple[str, ...]]] = [
    ("paper", ()),
    ("reference", ()),
    ("paper", ("dvib.distil_on=scores",)),
    ("paper", ("dvib.distil_on=scores", "dvib.rows=all", "dvib.phi_is=var")),
    ("paper", ("dvib.rows=all", "dvib.mix=convex")),
    ("paper", ("dvib.decay_both=true", "dvib.divergence=ref_entropy")),
    ("reference", ("dvib.divergence=js", "dvib.rows=batch", "dvib.prior=0.2")),
    ("reference", ("dvib.distil_on=features", "dvib.decay_both=false", "dvib.mix=add")),
    ("paper", ("dvib.gamma_0=0", "dvib.gamma_d=0", "dvib.gamma_r=0")),
    ("paper", ("dvib.divergence=kl_forward",)),
    ("paper", ("dvib.divergence=kl_reverse", "dvib.distil_on=scores", "dvib.net_phi=shared")),
    ("paper", ("dvib.entropy=0.3", "dvib.gamma_0=0")),
    ("reference", ("dvib.entropy=0.3", "dvib.gamma_d=0")),
]


@pytest.mark.parametrize("variant", DVIB)
@pytest.mark.parametrize(("preset", "overrides"), CASES)
def test_the_step_is_algorithm_1(variant: Variant, preset: Preset, overrides: tuple[str, ...]) -> None:
    config = make_config(variant, *STRONG, *overrides, preset=preset)
    objective, triples = build_objective(config, DATASET), draw_triples()
    assert isinstance(objective, DvibObjective)
    ours, naive = step(objective, triples).total, naive_total(objective, config, triples)
    assert ours.item() == pytest.approx(naive.item(), rel=1e-5)
    expected = gradients(naive, objective)
    for name, grad in gradients(ours, objective).items():
        assert torch.allclose(grad, expected[name], rtol=1e-3, atol=2e-6), name


@pytest.mark.parametrize("variant", DVIB)
@pytest.mark.parametrize("mix", ["add", "convex"])
def test_the_total_is_the_mix_of_the_logged_terms(variant: Variant, mix: str) -> None:
    config = make_config(variant, *STRONG, f"dvib.mix={mix}")
    result = step(build_objective(config, DATASET), draw_triples())
    terms = {name: value.item() for name, value in result.terms.items()}
    keep = 1 - 0.4 if mix == "convex" else 1.0
    expected = keep * (terms["general"] + 0.7 * terms["general_perturbed"]) + 0.4 * terms["distillation"]
    expected += 0.2 * terms.get("variational", 0.0)
    assert result.total.item() == pytest.approx(expected, rel=1e-6)
    assert terms["general"] == pytest.approx(terms["bpr"] + terms["decay"], rel=1e-6)
    assert ("variational" in terms) == ("phi_mean" in terms) == (variant == "adaptive")


def test_terms_show_what_is_dead_and_what_is_not() -> None:
    triples = draw_triples()
    terms = step(build_objective(make_config("adaptive", preset="reference"), DATASET), triples).terms
    assert {"bpr", "decay", "general_perturbed", "distillation", "js", "hidden_norm"} <= set(terms)
    assert 0.3 < terms["phi_mean"].item() < 0.7
    assert not any(value.requires_grad for value in terms.values())
    quiet = step(build_objective(make_config("constant", "dvib.sigma=0", preset="reference"), DATASET), triples).terms
    # The authors' term is far from zero without any perturbation; the true divergence says that nothing happens.
    assert quiet["js"].item() == 0
    assert quiet["distillation"].item() > 0.01
    assert quiet["general_perturbed"].item() == quiet["general"].item()


def test_the_true_divergence_is_logged_beside_the_authors_term() -> None:
    triples = draw_triples()
    overrides = ("dvib.sigma=0.5", "dvib.distil_on=scores")
    reference = step(
        build_objective(make_config("constant", *overrides, "dvib.divergence=ref_entropy"), DATASET), triples
    )
    paper = step(build_objective(make_config("constant", *overrides), DATASET), triples)
    assert reference.terms["js"].item() == pytest.approx(paper.terms["distillation"].item())
    assert reference.terms["js"].item() != pytest.approx(reference.terms["distillation"].item())


def test_decay_both_counts_the_weight_decay_once_more() -> None:
    # At zero noise both passes are equal, so the difference is exactly one weight decay.
    results = [
        step(
            build_objective(
                make_config("constant", "dvib.sigma=0", "model.regularisation=0.6", f"dvib.decay_both={both}"), DATASET
            ),
            draw_triples(),
        )
        for both in ("false", "true")
    ]
    difference = results[1].total.item() - results[0].total.item()
    assert difference == pytest.approx(results[0].terms["decay"].item(), rel=1e-5)
    assert difference > 0


@pytest.mark.parametrize("divergence", ["js", "ref_entropy"])
def test_blocks_of_scores_equal_one_block(monkeypatch: pytest.MonkeyPatch, divergence: str) -> None:
    overrides = ("dvib.distil_on=scores", f"dvib.divergence={divergence}", "dvib.rows=all", "dvib.gamma_d=0.9")
    objective, triples = build_objective(make_config("adaptive", *overrides), DATASET), draw_triples()
    whole = step(objective, triples)
    calls: list[tuple[int, ...]] = []
    original = module.DIVERGENCES[divergence]

    def spy(clean: Tensor, perturbed: Tensor) -> Tensor:
        calls.append(tuple(clean.shape))
        return original(clean, perturbed)

    monkeypatch.setitem(module.DIVERGENCES, divergence, spy)
    monkeypatch.setattr(module, "_SCORE_BLOCK", 2 * 40)
    parts = step(objective, triples)
    assert calls == [(2, 40), (2, 40), (1, 40)]  # the five distinct users of the batch, two at a time
    assert parts.total.item() == pytest.approx(whole.total.item(), rel=1e-6)
    expected = gradients(whole.total, objective)
    for name, grad in gradients(parts.total, objective).items():
        assert torch.allclose(grad, expected[name], rtol=1e-4, atol=1e-7), name


def test_features_distil_only_the_side_that_is_perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    # VBPR's users are the same tensor in both passes; they add nothing, not even a zero computed at length.
    objective, triples = build_objective(make_config("constant", "dvib.sigma=0.5"), DATASET), draw_triples()
    seen: list[tuple[int, ...]] = []

    def spy(clean: Tensor, perturbed: Tensor) -> Tensor:
        seen.append(tuple(clean.shape))
        return jensen_shannon(clean, perturbed)

    monkeypatch.setitem(module.DIVERGENCES, "js", spy)
    step(objective, triples)
    assert seen == [(len(torch.unique(torch.cat([triples.positives, triples.negatives]))), 16)]


# --- Candidates, entropy and the terms of the perturbed pass ---


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
