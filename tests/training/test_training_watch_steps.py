"""The gradient's norm, its clipping, and the stop at the first number that is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers_training import CPU, make_config, planted_blocks, same_tensors
from training.build import build_objective
from training.checkpoint import load_checkpoint
from training.config import RunConfig
from training.dvib.objective import StepLoss
from training.epoch import DivergedError, EpochRunner
from training.models.base import Batch, Latent
from training.models.vbpr import VBPR
from training.optimiser import RowAdam
from training.resume import load_resume_state
from training.trainer import Trainer
from training.watch.guard import STEPS_BETWEEN_NORMS, Finding, StepGuard

DATASET = planted_blocks(n_users=12, n_items=40)
NAN = float("nan")


def norms_of(runner: EpochRunner) -> list[float]:
    """Record the norm of the whole gradient that each step hands to Adam."""
    found: list[float] = []
    original = torch.optim.Adam.step

    def spy(self: Any, closure: Any = None) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        found.append(float(torch.cat(gradients).norm()))
        return original(self, closure)

    torch.optim.Adam.step = spy  # type: ignore[method-assign]
    try:
        runner.run(1)
    finally:
        torch.optim.Adam.step = original  # type: ignore[method-assign]
    return found


def new_runner(config: RunConfig) -> EpochRunner:
    objective = build_objective(config, DATASET)
    objective.train()
    return EpochRunner(objective, config, DATASET, CPU)


@pytest.mark.parametrize("model", ["vbpr", "bm3"])  # bm3: sparse gradients among others
def test_the_logged_norm_is_that_of_the_whole_gradient(model: str) -> None:
    runner = new_runner(make_config("adaptive", "training.batch_size=8", model=model))
    found = norms_of(runner)
    assert len(found) == runner.steps == 18
    looked_at = [found[number - 1] for number in (8, 16, 18)]
    assert runner.noted["gradient/mean"] == pytest.approx(sum(looked_at) / 3, rel=1e-5)
    assert runner.noted["gradient/max"] == pytest.approx(max(looked_at), rel=1e-5)
    assert STEPS_BETWEEN_NORMS == 8


@pytest.mark.parametrize("model", ["vbpr", "bm3"])
def test_a_clipped_gradient_is_never_longer_than_it_may_be(model: str) -> None:
    free = norms_of(new_runner(make_config("none", model=model)))
    longest = sorted(free)[len(free) // 2]
    clipped = norms_of(new_runner(make_config("none", f"training.clip_norm={longest}", model=model)))
    assert max(clipped) <= longest * 1.00001
    assert min(clipped) < longest * 0.99999  # a shorter one stays as it is
    assert max(free) > longest


def test_clipping_keeps_the_direction() -> None:
    table, vector = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.zeros(2))
    optimiser = RowAdam([table, vector], lr=1.0)
    rows = torch.tensor([1, 1, 3])
    taken = nn.functional.embedding(rows, table, sparse=True)
    (taken.sum() + 4.0 * vector[0]).backward()  # type: ignore[no-untyped-call]
    norms = optimiser.gradient_norms()
    assert norms.tolist() == pytest.approx([math.sqrt(2 * 2**2 + 2 * 1**2), 4.0])
    optimiser.scale_gradients(torch.tensor(0.5))
    assert table.grad is not None
    assert vector.grad is not None
    gradients = table.grad, vector.grad
    assert gradients[0].tolist() == [[0, 0], [1, 1], [0, 0], [0.5, 0.5], [0, 0]]
    assert gradients[1].tolist() == [2, 0]
    optimiser.step()
    # Nothing of a sparse gradient is left.
    assert not bool(gradients[0].any())
    assert optimiser.gradient_norms()[0] == 0
    table.sum().backward()  # type: ignore[no-untyped-call]  # a dense one after it, of all rows
    assert float(optimiser.gradient_norms()[0]) == pytest.approx(math.sqrt(10))


def test_a_norm_that_is_never_reached_changes_nothing() -> None:
    ends = []
    for settings in ((), ("training.clip_norm=1e9",)):
        runner = new_runner(make_config("adaptive", *settings))
        runner.run(1)
        ends.append(runner.objective.state_dict())
    assert same_tensors(ends[0], ends[1])


def loss(total: float, **terms: float) -> StepLoss:
    return StepLoss(torch.tensor(total), {name: torch.tensor(value) for name, value in terms.items()})


def good() -> Tensor:
    return torch.tensor([1.0, 2.0])


def test_the_guard_finds_the_first_bad_step_whenever_it_looks() -> None:
    for period in (1, 3, 10):
        guard = StepGuard(["a", "b"], period)
        steps = [(1, loss(1.0, bpr=1.0)), (2, loss(NAN, bpr=1.0, decay=math.inf)), (3, loss(NAN, bpr=NAN))]
        found = next((seen for number, step in steps if (seen := guard.saw(number, step, good()))), None)
        assert (found or guard.look()) == Finding(2, ("total", "decay"))
    guard = StepGuard(["a", "b"], 10)
    assert guard.saw(1, loss(1.0), good()) is None
    assert guard.saw(2, loss(1.0), None) is None
    assert guard.saw(3, loss(1.0), torch.tensor([1.0, math.inf])) is None
    assert guard.saw(4, loss(NAN), good()) is None
    assert guard.look() == Finding(3, (), ("b",))
    assert guard.look() is None


def test_under_loss_scaling_a_gradient_may_overflow() -> None:
    guard = StepGuard(["a", "b"], 1, gradients=False)
    assert guard.saw(1, loss(1.0), torch.tensor([math.inf, 1.0])) is None
    assert guard.saw(2, loss(1.0), good()) is None
    assert guard.norms() == pytest.approx({"gradient/mean": 5**0.5, "gradient/max": 5**0.5})
    assert guard.saw(3, loss(NAN), good()) == Finding(3, ("total",))


class Broken:
    """A term that is no number, or whose gradient is none, in one step and ever after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, *, gradient: bool) -> None:
        self.calls = 0
        original = VBPR.loss

        def broken(model: VBPR, latent: Latent, batch: Batch) -> dict[str, Tensor]:
            self.calls += 1
            terms = original(model, latent, batch)
            if self.calls < step:
                return {**terms, "extra": latent.users.sum() * 0.0}
            if gradient:  # finite, and the derivative of the root at zero is not
                return {**terms, "extra": (latent.users * 0.0).square().sum().sqrt()}
            return {**terms, "extra": latent.users.sum() * NAN}

        monkeypatch.setattr(VBPR, "loss", broken)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_run_stops_at_the_step_that_broke_and_keeps_what_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gradient: bool
) -> None:
    config = make_config("none", "training.epochs=6", "training.clip_norm=100", "training.watch_every=0")
    monkeypatch.setattr("training.trainer.SAVE_SECONDS", -1.0)
    steps = new_runner(config).steps
    with monkeypatch.context() as patch:
        Broken(patch, 3 * steps + 2, gradient=gradient)  # the second step of the fourth epoch
        with pytest.raises(DivergedError) as caught:
            Trainer(config, DATASET, tmp_path / "run").fit()
        message = str(caught.value)
    assert message.startswith(f"epoch 4, step 2 of {steps}: the {'gradient' if gradient else 'loss'} is not finite")
    assert ("of model.users; the term: extra)" if gradient else "(total, extra)") in message
    # What the three good epochs left is whole.
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    state = load_resume_state(tmp_path / "run")
    assert state is not None
    assert state.document["epoch"] == 3
    assert all(bool(torch.isfinite(value).all()) for value in (*state.tensors.values(), *state.optimiser.values()))
    assert all(bool(torch.isfinite(value).all()) for value in load_checkpoint(tmp_path / "run").model.values())
    # Once the cause is gone, the run goes on as if nothing had been.
    resumed = Trainer(config, DATASET, tmp_path / "run").fit(resume=True)
    through = Trainer(config, DATASET, tmp_path / "through").fit()
    assert resumed.metrics == through.metrics
    assert same_tensors(load_checkpoint(tmp_path / "run").model, load_checkpoint(tmp_path / "through").model)


def test_a_bad_gradient_in_the_last_step_is_found_before_anything_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = make_config("none", "training.epochs=3", "training.watch_every=0")
    steps = new_runner(config).steps
    assert steps < STEPS_BETWEEN_NORMS
    Broken(monkeypatch, steps, gradient=True)
    with pytest.raises(DivergedError, match=rf"epoch 1, step {steps} of {steps}: the gradient is not finite"):
        Trainer(config, DATASET, tmp_path).fit()
    assert not (tmp_path / "best").exists()


def test_on_an_accelerator_steps_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first bad one is named all the same.
    config = make_config("none", "training.batch_size=16", "training.watch_every=0")
    runner = new_runner(config)
    runner.device = torch.device("cpu")
    monkeypatch.setattr(runner, "_new_guard", lambda: StepGuard([n for n, _ in runner.named_parameters()], 16))
    Broken(monkeypatch, 4, gradient=False)
    with pytest.raises(DivergedError, match=r"epoch 1, step 4 of 9: the loss is not finite any more \(total, extra\)"):
        runner.run(1)
