from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.helpers_training import CPU, VARIANTS, make_config, planted_blocks, same_tensors, trained
from training.build import build_model, build_objective
from training.common.choices import Variant
from training.dvib import objective as module
from training.dvib.objective import Objective, PlainObjective
from training.dvib.perturbation import NetPhi, Noise, perturb
from training.epoch import EpochRunner
from training.evaluation import EvaluationSet, evaluate_model
from training.models import MODELS
from training.randomness import stream

DATASET = planted_blocks(n_users=12, n_items=40)
DVIB: tuple[Variant, ...] = ("constant", "adaptive")


@dataclass
class Spies:
    """What really ran during a training."""

    noises: list[Tensor]
    phis: list[Tensor]


def spy_on(monkeypatch: pytest.MonkeyPatch) -> Spies:
    spies = Spies([], [])
    original_phi = NetPhi.__call__

    def noise(hidden: Tensor, scale: Tensor, generator: torch.Generator, kind: Noise) -> Tensor:
        perturbed = perturb(hidden, scale, generator, kind)
        spies.noises.append((perturbed - hidden).detach())
        return perturbed

    def phi(self: NetPhi, hidden: Tensor) -> Tensor:
        spies.phis.append(original_phi(self, hidden))
        return spies.phis[-1]

    monkeypatch.setattr(module, "perturb", noise)
    monkeypatch.setattr(NetPhi, "__call__", phi)
    return spies


@pytest.mark.parametrize("variant", DVIB)
@pytest.mark.parametrize("distil_on", ["features", "scores"])
def test_without_weights_dvib_trains_the_baseline_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, variant: Variant, distil_on: str
) -> None:
    epochs = 3
    baseline = trained(make_config("none"), DATASET, epochs)
    spies = spy_on(monkeypatch)
    zero = ("dvib.gamma_0=0", "dvib.gamma_d=0", "dvib.gamma_r=0", "dvib.mix=add", "dvib.sigma=0.1")
    config = make_config(variant, *zero, f"dvib.distil_on={distil_on}")
    objective = trained(config, DATASET, epochs)
    assert same_tensors(baseline.model.state_dict(), objective.model.state_dict())
    start = build_model(config, DATASET)
    assert not same_tensors(start.state_dict(), objective.model.state_dict())  # something was learned at all
    # The terms were computed, not skipped: in every step noise was drawn, and Net_φ ran in the adaptive variant.
    steps = epochs * EpochRunner(build_objective(config, DATASET), config, DATASET, CPU).steps
    assert steps > epochs
    assert len(spies.noises) == steps
    assert all(float(noise.std()) > 0.01 for noise in spies.noises)
    assert len(spies.phis) == (steps if variant == "adaptive" else 0)
    assert all(bool(((phi > 0) & (phi < 1)).all()) for phi in spies.phis)


@pytest.mark.parametrize("model", MODELS)
def test_without_weights_dvib_trains_every_model_bit_for_bit_as_without_dvib(model: str) -> None:
    baseline = trained(make_config("none", model=model), DATASET, 2).model.state_dict()
    zero = ("dvib.gamma_0=0", "dvib.gamma_d=0", "dvib.gamma_r=0", "dvib.sigma=0.5")
    for variant in DVIB:
        assert same_tensors(baseline, trained(make_config(variant, *zero, model=model), DATASET, 2).model.state_dict())
    other = trained(make_config("constant", "dvib.sigma=0.5", model=model), DATASET, 2).model.state_dict()
    assert not same_tensors(baseline, other)


@pytest.mark.parametrize("variant", DVIB)
def test_with_weights_dvib_trains_something_else(variant: Variant) -> None:
    baseline, objective = (trained(make_config(kind), DATASET, 1) for kind in ("none", variant))
    assert not same_tensors(baseline.model.state_dict(), objective.model.state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_does_not_change_the_trajectory(variant: Variant) -> None:
    config = make_config(variant, "dvib.sigma=0.1")
    data = EvaluationSet.of(DATASET, "valid")

    def evaluate_often(objective: Objective) -> None:
        objective.eval()
        results = [evaluate_model(objective.model, data, DATASET.n_items, (5, 10)) for _ in range(3)]
        assert results[0] == results[1] == results[2]

    quiet, watched = trained(config, DATASET, 3), trained(config, DATASET, 3, evaluate_often)
    assert same_tensors(quiet.state_dict(), watched.state_dict())


@pytest.mark.parametrize("variant", ["none", "adaptive"])
def test_only_the_seed_decides(variant: Variant) -> None:
    config = make_config(variant)
    torch.manual_seed(0)
    first = trained(config, DATASET, 2)
    torch.manual_seed(1)
    again = trained(config, DATASET, 2, lambda _: torch.rand(3))  # somebody else uses the global generator
    assert same_tensors(first.state_dict(), again.state_dict())
    other = trained(make_config(variant, "training.seed=1"), DATASET, 2)
    assert not same_tensors(first.state_dict(), other.state_dict())


def test_steps_leave_the_global_generator_alone() -> None:
    config = make_config("adaptive", preset="reference")
    runner = EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
    before = torch.get_rng_state()
    runner.run(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_variant_does_not_shift_batches_or_negatives() -> None:
    runners = [
        EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
        for config in (make_config(variant) for variant in VARIANTS)
    ]
    runners[2].run(1)  # whatever was drawn before
    for batches in zip(*(runner.triples(2) for runner in runners), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))


def test_an_epoch_covers_every_interaction_once_with_its_own_order() -> None:
    config = make_config("none", "training.batch_size=100")
    runner = EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
    epochs = []
    for epoch in (1, 2):
        batches = list(runner.triples(epoch))
        assert [len(users) for users, _, _ in batches] == [100, 44]
        assert runner.steps == 2
        users, positives, negatives = (torch.cat(parts) for parts in zip(*batches, strict=True))
        epochs.append((users, positives, negatives))
        pairs = sorted(zip(users.tolist(), positives.tolist(), strict=True))
        assert pairs == sorted(zip(DATASET.train.users.tolist(), DATASET.train.items.tolist(), strict=True))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][2], epochs[1][2])


def test_epoch_means_weigh_batches_by_their_size() -> None:
    config = make_config("none", "training.batch_size=100")
    runner = EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
    steps = [(share, result.total.item()) for share, result in runner.steps_of(1)]
    assert [share for share, _ in steps] == pytest.approx([100 / 144, 44 / 144])
    again = EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
    done: list[int] = []
    means = again.run(1, lambda: done.append(1))
    assert len(done) == 2
    assert means["total"] == pytest.approx(sum(share * value for share, value in steps), rel=1e-6)


def test_the_optimiser_holds_model_and_net_phi_and_net_phi_learns() -> None:
    config = make_config("adaptive")
    objective = build_objective(config, DATASET)
    runner = EpochRunner(objective, config, DATASET, CPU)
    names = [name for name, _ in runner.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in objective.named_parameters())
    optimised = {id(value) for group in runner.optimiser.param_groups for value in group["params"]}
    assert optimised == {id(value) for value in objective.parameters()}
    before = {name: value.detach().clone() for name, value in objective.own_parameters().items()}
    assert before
    assert all(name.startswith("net_phi.at_fused.") for name in before)
    runner.run(1)
    assert all(not torch.equal(value, before[name]) for name, value in objective.own_parameters().items())


def test_plain_and_constant_have_no_parameters_of_their_own() -> None:
    plain, constant = build_objective(make_config("none"), DATASET), build_objective(make_config("constant"), DATASET)
    assert isinstance(plain, PlainObjective)
    assert plain.own_parameters() == constant.own_parameters() == {}


def test_net_phi_is_as_wide_as_configured() -> None:
    objective = build_objective(make_config("adaptive", "dvib.net_phi_hidden=[5, 4, 3]"), DATASET)
    shapes = [tuple(value.shape) for name, value in objective.own_parameters().items() if name.endswith("weight")]
    assert shapes == [(5, 8), (4, 5), (3, 4), (1, 3)]


def test_noise_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first noise of an epoch is the first draw of stream("noise", epoch), whatever batches and negatives drew.
    config = make_config("constant", "dvib.sigma=1")
    spies = spy_on(monkeypatch)
    EpochRunner(build_objective(config, DATASET), config, DATASET, CPU).run(4)
    first = spies.noises[0]
    expected = torch.empty_like(first).normal_(generator=stream(config.training.seed, "noise", 4))
    assert torch.allclose(first, expected, atol=1e-5)
