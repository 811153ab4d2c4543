from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tests.helpers_objective import DATASET, DVIB, STRONG, Triples, draw_triples, entropy_term, gradients, step
from tests.helpers_training import make_config
from training.build import build_objective
from training.common.choices import Preset, Variant
from training.config import RunConfig
from training.dvib import distillation as module
from training.dvib.divergence import jensen_shannon
from training.dvib.objective import DvibObjective
from training.dvib.perturbation import NetPhi
from training.models.vbpr import VBPR

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
