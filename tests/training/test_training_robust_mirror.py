"""Mirror Gradient: its steps in closed form, the same draws in both, every model, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers_training import (
    CPU,
    VARIANTS,
    Interrupted,
    StopAt,
    make_config,
    planted_blocks,
    same_tensors,
    trained,
)
from training import trainer as module
from training.build import build_objective
from training.checkpoint import MODEL, load_checkpoint
from training.common.choices import Variant
from training.common.errors import CheckpointError
from training.dvib.objective import PlainObjective, StepLoss
from training.epoch import EpochRunner
from training.evaluation import EvaluationSet, evaluate, evaluate_model, popularity_scorer
from training.models import MODELS
from training.models.base import Batch
from training.optimiser import RowAdam
from training.resume import LAST
from training.robust.config import RobustConfig
from training.robust.mirror import step_weights, with_same_draws
from training.trainer import Trainer

DATASET = planted_blocks(n_users=12, n_items=40)
MG = ("robust.mg=true", "robust.mg_interval=3", "robust.mg_descent=0.8", "robust.mg_ascent=0.3")
# 144 interactions in batches of 20: eight steps, of which those with the numbers 0, 3 and 6 are mirrored.
WEIGHTS = [(0.8, -0.3), (1.0,), (1.0,), (0.8, -0.3), (1.0,), (1.0,), (0.8, -0.3), (1.0,)]
RATE = 0.05

A = torch.tensor([[3.0, 0.5, 0.0], [0.5, 2.0, -0.4], [0.0, -0.4, 1.0]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
START = torch.tensor([4.0, -1.0, 2.5], dtype=torch.float64)


class Bowl(PlainObjective):
    """½ θᵀAθ - Bᵀθ in place of any model's loss."""

    theta: nn.Parameter

    def own_step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        del batch, noise
        total = 0.5 * self.theta @ A @ self.theta - B @ self.theta
        return StepLoss(total, {"bowl": total.detach()})


def bowl_runner(*overrides: str) -> tuple[EpochRunner, nn.Parameter]:
    config = make_config("none", "training.batch_size=20", *overrides)
    plain = build_objective(config, DATASET)
    bowl = Bowl(plain.model, plain.config, plain.training_items)
    bowl.theta = nn.Parameter(START.clone())
    return EpochRunner(bowl, config, DATASET, CPU), bowl.theta


def gradient(theta: Tensor) -> Tensor:
    return A @ theta - B


Stepper = Callable[[Tensor, Tensor], Tensor]


def sgd() -> Stepper:
    return lambda theta, g: theta - RATE * g


def adam() -> Stepper:
    """Adam from its paper (Algorithm 1), in float64."""
    state = {"m": torch.zeros(3, dtype=torch.float64), "v": torch.zeros(3, dtype=torch.float64)}
    count = 0

    def move(theta: Tensor, g: Tensor) -> Tensor:
        nonlocal count
        count += 1
        state["m"] = 0.9 * state["m"] + 0.1 * g
        state["v"] = 0.999 * state["v"] + 0.001 * g * g
        m_hat, v_hat = state["m"] / (1 - 0.9**count), state["v"] / (1 - 0.999**count)
        return theta - RATE * m_hat / (v_hat.sqrt() + 1e-8)

    return move


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_epoch_on_a_quadratic_is_the_closed_form(kind: str) -> None:
    runner, theta = bowl_runner(*MG)
    optimisers = {"sgd": torch.optim.SGD([theta], lr=RATE), "adam": RowAdam([theta], lr=RATE)}
    runner.optimiser = optimisers[kind]  # type: ignore[assignment]
    move = {"sgd": sgd, "adam": adam}[kind]()
    expected = START
    for (_, result), weights in zip(runner.steps_of(1), WEIGHTS, strict=True):
        before = 0.5 * expected @ A @ expected - B @ expected
        assert result.total.item() == pytest.approx(before.item(), rel=1e-12)  # what is logged is the loss as it was
        for weight in weights:
            expected = move(expected, weight * gradient(expected))
        assert torch.allclose(theta, expected, rtol=1e-10, atol=1e-12)


def test_two_steps_of_plain_descent_are_the_papers_formula() -> None:
    # With g(θ) = Aθ - B and SGD, θ" = θ - η α1 g(θ) + η α2 g(θ - η α1 g(θ)).
    runner, theta = bowl_runner("robust.mg=true", "robust.mg_interval=1", "robust.mg_ascent=0.2")
    runner.optimiser = torch.optim.SGD([theta], lr=RATE)  # type: ignore[assignment]
    next(runner.steps_of(1))
    half = START - RATE * gradient(START)
    assert torch.allclose(theta, half + RATE * 0.2 * gradient(half), rtol=1e-12)
    # To first order that is a descent on (1 - α2) L + η α1 α2 ½‖∇L‖²: flat places are preferred.
    flat = (1 - 0.2) * gradient(START) + RATE * 0.2 * A @ gradient(START)
    assert torch.allclose(theta, START - RATE * flat, rtol=1e-12)


def test_which_batches_are_mirrored() -> None:
    on = RobustConfig(mg=True, mg_interval=3, mg_descent=0.8, mg_ascent=0.3)
    assert [step_weights(on, number) for number in range(8)] == WEIGHTS
    assert {step_weights(RobustConfig(mg_interval=1), number) for number in range(4)} == {(1.0,)}
    assert {step_weights(RobustConfig(mg=True, mg_interval=1), number) for number in range(4)} == {(1.0, -0.1)}


def test_both_steps_draw_the_same_and_the_generators_move_on_once() -> None:
    first, second, lone = (torch.Generator().manual_seed(seed) for seed in (1, 2, 1))
    draws = [
        (weight, torch.rand(3, generator=first), torch.rand(2, generator=second))
        for weight in with_same_draws((1.0, -0.5, 0.2), (first, second))
    ]
    assert [weight for weight, _, _ in draws] == [1.0, -0.5, 0.2]
    for _, left, right in draws[1:]:
        assert torch.equal(left, draws[0][1])
        assert torch.equal(right, draws[0][2])
    torch.rand(3, generator=lone)
    assert torch.equal(first.get_state(), lone.get_state())


@pytest.mark.parametrize("model", MODELS)
def test_both_losses_of_a_batch_are_one_function_in_every_model(model: str) -> None:
    # At a vanishing learning rate nothing moves, so that only other draws could make the second loss another.
    def losses(*overrides: str) -> tuple[list[list[float]], bytes]:
        config = make_config("adaptive", "dvib.sampled_items=5", *overrides, model=model)
        runner = EpochRunner(build_objective(config, DATASET), config, DATASET, CPU)
        for group in runner.optimiser.param_groups:
            group["lr"] = 1e-30
        found: list[list[float]] = []
        step = runner.objective.step

        def spy(batch: Batch, noise: torch.Generator) -> StepLoss:
            result = step(batch, noise)
            found[-1].append(result.total.item())
            return result

        runner.objective.step = spy  # type: ignore[method-assign]
        steps: Iterator[tuple[float, StepLoss]] = runner.steps_of(1)
        for _ in range(runner.steps):
            found.append([])
            next(steps)
        return found, runner.objective.model.current_generator().get_state().numpy().tobytes()

    mirrored, end = losses(*MG)
    plain, plain_end = losses()
    assert [len(values) for values in mirrored] == [2, 1, 1]
    assert all(len(set(values)) == 1 for values in mirrored)
    assert len({values[0] for values in mirrored}) == 3  # batches and noise differ from step to step
    # The next batch draws what it would have drawn without the rule.
    assert [values[0] for values in mirrored] == [values[0] for values in plain]
    assert end == plain_end


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_under_it_together_with_dvib(model: str) -> None:
    dataset = planted_blocks()
    config = make_config("adaptive", "training.learning_rate=0.03", "robust.mg=true", model=model)
    objective = trained(config, dataset, 10)
    data = EvaluationSet.of(dataset, "test")
    metrics = evaluate_model(objective.model, data, dataset.n_items, (10,))
    popular = evaluate(popularity_scorer(dataset), data, dataset.n_items, (10,))
    assert metrics["ndcg@10"] > 2 * popular["ndcg@10"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_changes_what_is_learned_and_nothing_that_is_stored(variant: Variant) -> None:
    without, mirrored = (
        trained(make_config(variant, *more), DATASET, 1).state_dict() for more in ((), ("robust.mg=true",))
    )
    assert without.keys() == mirrored.keys()
    assert not same_tensors(without, mirrored)
    assert all(math.isfinite(float(value.sum())) for value in mirrored.values())


def test_a_run_is_not_resumed_as_another(tmp_path: Path) -> None:
    Trainer(make_config("none", "training.epochs=1"), DATASET, tmp_path, ks=(5,)).fit()
    with pytest.raises(CheckpointError, match=r"another 'robust' \(mg: False → True\)"):
        Trainer(make_config("none", "training.epochs=2", "robust.mg=true"), DATASET, tmp_path).fit(resume=True)


@pytest.mark.parametrize(
    ("model", "variant", "more"), [("vbpr", "adaptive", ("robust.amr=true",)), ("selfcf", "adaptive", ())]
)
def test_a_run_stopped_inside_an_epoch_and_resumed_equals_one_that_went_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, variant: Variant, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", -1.0)
    config = make_config(variant, *MG, *more, "training.epochs=5", model=model)
    Trainer(config, DATASET, tmp_path / "whole", ks=(5,)).fit()
    for steps in (8, 4):  # three steps in an epoch
        with pytest.raises(Interrupted):
            Trainer(config, DATASET, tmp_path / "parts", reporter=StopAt(steps=steps), ks=(5,)).fit(resume=True)
    Trainer(config, DATASET, tmp_path / "parts", ks=(5,)).fit(resume=True)
    for name in ("parameters.safetensors", "optimiser.safetensors"):
        left, right = (load_file(tmp_path / run / LAST / name) for run in ("whole", "parts"))
        assert same_tensors(left, right)
    assert (tmp_path / "whole/best" / MODEL).read_bytes() == (tmp_path / "parts/best" / MODEL).read_bytes()
    whole, parts = (load_checkpoint(tmp_path / run).info for run in ("whole", "parts"))
    assert whole.metrics == parts.metrics
