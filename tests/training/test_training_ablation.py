"""The switches that the paper's ablations turn: each changes the term that it names, and no other."""

from __future__ import annotations

from functools import cached_property
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from tests.helpers_objective import DATASET, STRONG, Triples, draw_triples, gradients, step
from tests.helpers_training import make_config, same_tensors
from training.build import build_objective
from training.common.choices import Variant
from training.common.errors import ConfigError
from training.dvib.objective import DvibObjective, StepLoss
from training.models.base import Batch, Hidden, Latent
from training.models.vbpr import VBPR

DVIB: tuple[Variant, ...] = ("constant", "adaptive")
EVERY_VARIANT = pytest.mark.parametrize("variant", DVIB)
TRIPLES: Triples = draw_triples()
WEIGHTS = {"gamma_0": 0.7, "gamma_d": 0.4, "gamma_r": 0.2}
TERMS = {"gamma_0": "general_perturbed", "gamma_d": "distillation", "gamma_r": "variational"}


class Seen:
    """One step, and what passed through the model in it."""

    def __init__(self, variant: Variant, *overrides: str) -> None:
        self.objective = cast("DvibObjective", build_objective(make_config(variant, *STRONG, *overrides), DATASET))
        self.hiddens: list[Hidden] = []
        self.latents: list[Latent] = []
        represent = self.objective.model.represent

        def spy(hidden: Hidden) -> Latent:
            self.hiddens.append(hidden)
            self.latents.append(represent(hidden))
            return self.latents[-1]

        self.objective.model.represent = spy  # type: ignore[method-assign]
        self.result: StepLoss = step(self.objective, TRIPLES)

    @property
    def terms(self) -> dict[str, Tensor]:
        return dict(self.result.terms)

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        return gradients(self.result.total, self.objective)


def without(terms: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in terms.items() if name not in names}


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=2e-6), name


@EVERY_VARIANT
@pytest.mark.parametrize("key", ["gamma_0", "gamma_d", "gamma_r"])
def test_a_weight_of_zero_takes_its_term_out_of_the_total_and_leaves_the_rest(variant: Variant, key: str) -> None:
    full, off = Seen(variant), Seen(variant, f"dvib.{key}=0")
    assert same_tensors(full.terms, off.terms)  # the log goes on to show what it would be
    term = full.terms.get(TERMS[key], torch.zeros(()))
    lost = full.result.total.item() - off.result.total.item()
    assert lost == pytest.approx(WEIGHTS[key] * term.item(), rel=1e-4, abs=1e-6)
    same = key == "gamma_r" and variant == "constant"  # the constant variant has no regulariser
    changed = any(
        not torch.allclose(value, other, rtol=1e-6, atol=1e-9)
        for value, other in zip(full.gradients.values(), off.gradients.values(), strict=True)
    )
    assert changed != same
    twice = Seen(variant, f"dvib.{key}={2 * WEIGHTS[key]}")
    halves = {name: (twice.gradients[name] + value) / 2 for name, value in off.gradients.items()}
    assert_gradients(full.gradients, halves)


@EVERY_VARIANT
@pytest.mark.parametrize("mix", ["add", "convex"])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_gamma_l0_weighs_the_clean_pass_and_neither_the_decay_nor_the_perturbed_pass(
    variant: Variant, mix: str, weight: float
) -> None:
    full, less = (Seen(variant, f"dvib.mix={mix}", *more) for more in ((), (f"dvib.gamma_l0={weight}",)))
    assert same_tensors(full.terms, less.terms)
    keep = 1 - WEIGHTS["gamma_d"] if mix == "convex" else 1.0
    lost = full.result.total.item() - less.result.total.item()
    assert lost == pytest.approx(keep * (1 - weight) * full.terms["bpr"].item(), rel=1e-4)
    model = cast("VBPR", full.objective.model)
    batch = Batch.of(TRIPLES.users, TRIPLES.positives, TRIPLES.negatives)
    task = model.loss(model.represent(model.hidden(batch.rows)), batch)["bpr"]
    own = gradients(task, full.objective)
    expected = {name: value - keep * (1 - weight) * own[name] for name, value in full.gradients.items()}
    assert_gradients(less.gradients, expected)


def test_without_both_passes_there_is_nothing_to_learn() -> None:
    with pytest.raises(ConfigError, match=r"dvib\.gamma_l0=0 and dvib\.gamma_0=0"):
        make_config("constant", "dvib.gamma_l0=0", "dvib.gamma_0=0")
    make_config("none", "dvib.gamma_l0=0", "dvib.gamma_0=0")  # they do not concern the plain model


def test_without_weight_decay_the_perturbed_pass_alone_trains() -> None:
    seen = Seen("constant", "dvib.gamma_l0=0", "dvib.gamma_d=0", "model.regularisation=0")
    assert seen.result.total.item() == pytest.approx(0.7 * seen.terms["general_perturbed"].item())
    assert all(float(value.abs().max()) > 0 for name, value in seen.gradients.items() if not name.endswith("bias"))


@EVERY_VARIANT
@pytest.mark.parametrize("on", ["features", "scores"])
def test_the_divergence_turns_into_kl_in_either_direction(variant: Variant, on: str) -> None:
    js_seen = Seen(variant, f"dvib.distil_on={on}", "dvib.sigma=2")
    for divergence in ("js", "kl_forward", "kl_reverse"):
        seen = Seen(variant, f"dvib.divergence={divergence}", f"dvib.distil_on={on}", "dvib.sigma=2")
        clean, perturbed = (latent.items for latent in seen.latents)
        if on == "scores":
            users = cast("VBPR", seen.objective.model).users[TRIPLES.users]
            clean, perturbed = users @ clean.T, users @ perturbed.T
        p, q = (Categorical(logits=logits.double()) for logits in (clean, perturbed))
        m = Categorical(probs=(p.probs + q.probs) / 2)
        js = (kl_divergence(p, m) + kl_divergence(q, m)).mean() / 2
        expected = {"js": js, "kl_forward": kl_divergence(p, q).mean(), "kl_reverse": kl_divergence(q, p).mean()}
        assert seen.terms["distillation"].item() == pytest.approx(expected[divergence].item(), rel=1e-4)
        assert len({round(value.item(), 5) for value in expected.values()}) == 3  # they can be told apart
        rest = [without(one.terms, "distillation", "js") for one in (seen, js_seen)]
        assert same_tensors(*rest)


@EVERY_VARIANT
def test_the_noise_is_the_one_that_is_named(variant: Variant) -> None:
    moved = {}
    for noise in ("gaussian", "uniform", "dropout"):
        seen = Seen(variant, f"dvib.noise={noise}", "dvib.sigma=0.4")
        clean, perturbed = (hidden.sites["fused"].detach() for hidden in seen.hiddens)
        scale = seen.objective.scales(seen.hiddens[0])["fused"].detach()
        moved[noise] = perturbed - clean
        if noise == "dropout":
            dropped = perturbed == 0
            assert torch.equal(perturbed[~dropped], clean[~dropped])
            assert dropped.float().mean().item() == pytest.approx(scale.mean().item(), abs=0.1)
            continue
        unit = (moved[noise] / scale).flatten()
        assert unit.square().mean().item() == pytest.approx(1, abs=0.25)
        assert (float(unit.abs().max()) > 3**0.5 + 1e-4) == (noise == "gaussian")
    # The clean pass does not notice.
    plain = without(Seen(variant).terms, "general_perturbed", "distillation", "js")
    other = without(Seen(variant, "dvib.noise=uniform").terms, "general_perturbed", "distillation", "js")
    assert same_tensors(plain, other)
    assert not torch.equal(moved["gaussian"], moved["uniform"])


@pytest.mark.parametrize(("regulariser", "a"), [("eq13", 0.5), ("eq13", 0.1), ("kl_std", 0.5), ("kl_std", 2.0)])
def test_the_prior_enters_the_regulariser_and_nothing_else(regulariser: str, a: float) -> None:
    seen = Seen("adaptive", f"dvib.regulariser={regulariser}", f"dvib.prior={a}")
    h = seen.hiddens[0].sites["fused"].double()
    phi = seen.objective.scales(seen.hiddens[0])["fused"].double().expand_as(h)
    deviation = a if regulariser == "kl_std" else a**0.5
    expected = kl_divergence(Normal(h, phi), Normal(torch.zeros_like(h), deviation)).mean()
    assert seen.terms["variational"].item() == pytest.approx(expected.item(), rel=1e-4)
    other = Seen("adaptive", f"dvib.regulariser={regulariser}", "dvib.prior=7")
    assert same_tensors(without(seen.terms, "variational"), without(other.terms, "variational"))
    assert not torch.equal(seen.terms["variational"], other.terms["variational"])
    constant = [Seen("constant", f"dvib.prior={prior}").result.total for prior in (0.5, 7)]
    assert torch.equal(*constant)
