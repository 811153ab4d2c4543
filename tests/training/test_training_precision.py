"""Mixed precision and compiled passes: options that stay near what they replace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers_training import CPU, Interrupted, StopAt, make_config, planted_blocks, same_tensors
from training.build import build_objective
from training.checkpoint import load_checkpoint
from training.common.choices import Variant
from training.common.errors import ConfigError, DvibError
from training.config import RunConfig
from training.dvib.objective import Objective
from training.epoch import EpochRunner
from training.evaluation import EvaluationSet, evaluate_model
from training.models import MODELS
from training.models.base import Rows
from training.passes import CompiledPasses, MixedPasses, Passes, make_passes
from training.randomness import stream
from training.trainer import Trainer

DATASET = planted_blocks(n_users=12, n_items=40)


def started(config: RunConfig) -> tuple[Objective, EpochRunner]:
    objective = build_objective(config, DATASET)
    objective.train().model.begin_epoch(1, stream(1, "model", 1))
    return objective, EpochRunner(objective, config, DATASET, CPU)


def test_by_default_the_model_itself_is_run() -> None:
    objective, runner = started(make_config("adaptive"))
    assert type(objective.passes) is Passes
    assert objective.passes.model is objective.model
    assert runner.scaler is None
    assert not any("passes" in name for name in objective.state_dict())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", ["none", "adaptive"])
def test_bfloat16_trains_every_model_near_float32(model: str, variant: Variant) -> None:
    totals, ends = [], []
    for precision in ("float32", "bfloat16"):
        objective, runner = started(make_config(variant, f"training.precision={precision}", model=model))
        totals.append([float(step.total.detach()) for _, step in runner.steps_of(1)])
        ends.append(objective)
    # Eight bits of mantissa: a factor is off by 2^-9. Adam's first steps are of one size, whatever comes.
    assert totals[1] == pytest.approx(totals[0], rel=0.02, abs=0.01)
    assert all(value.dtype == torch.float32 for value in ends[1].parameters())


def test_products_are_narrow_and_h_z_and_losses_are_not() -> None:
    objective, _ = started(make_config("none", "training.precision=bfloat16"))
    seen: list[torch.dtype] = []
    original = torch.nn.functional.linear

    def spy(*arguments: Tensor) -> Tensor:
        result = original(*arguments)
        seen.append(result.dtype)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", spy)
        hidden = objective.passes.hidden(Rows())
        latent = objective.passes.represent(hidden)
        assert seen == [torch.bfloat16]
        # Evaluation asks the model, not the passes.
        objective.model.vectors()
        assert seen == [torch.bfloat16, torch.float32]
    for value in (*hidden.sites.values(), *hidden.context.values(), latent.users, latent.items):
        assert value.dtype == torch.float32


def test_a_narrow_run_is_evaluated_in_float32(tmp_path: Path) -> None:
    config = make_config("constant", "training.epochs=2", "training.precision=bfloat16", "dvib.sigma=0.5")
    info = Trainer(config, DATASET, tmp_path).fit()
    model = build_objective(make_config("none"), DATASET).model
    model.load_state_dict(load_checkpoint(tmp_path).model)
    data = EvaluationSet.of(DATASET, "test")
    found = evaluate_model(model.eval(), data, DATASET.n_items, (5, 10))
    assert {name: info.metrics["test"][name] for name in found} == found


def test_float16_needs_cuda() -> None:
    with pytest.raises(
        ConfigError, match=r"training\.precision=float16 needs CUDA, the device is cpu; choose bfloat16"
    ):
        started(make_config("none", "training.precision=float16"))


def allow_float16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU can do it, slowly: what is about the scaling can be tested without CUDA."""
    made = lambda model, precision, device, **_: MixedPasses(Passes(model), precision, device)  # noqa: E731
    monkeypatch.setattr("training.epoch.make_passes", made)


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_float16_here(monkeypatch)
    ends = []
    for precision in ("float32", "float16"):
        objective, runner = started(make_config("none", f"training.precision={precision}"))
        total = runner.run(1)["total"]
        ends.append((total, runner.noted["gradient/max"], objective.model.state_dict()))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=0.01)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=0.05)  # of the gradient itself, not of the scaled one
    objective, runner = started(make_config("none", "training.precision=float16"))
    assert runner.scaler is not None
    runner.scaler.load_state_dict({**runner.scaler.state_dict(), "scale": 1e38, "_growth_tracker": 0})
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    next(iter(runner.steps_of(1)))
    assert same_tensors(before, objective.state_dict())
    assert runner.scaler.state_dict()["scale"] == pytest.approx(0.5e38)


def test_a_resumed_float16_run_goes_on_with_its_scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allow_float16_here(monkeypatch)
    monkeypatch.setattr("training.trainer.SAVE_SECONDS", -1.0)
    config = make_config("none", "training.epochs=4", "training.precision=float16")

    def fit(out: Path, reporter: StopAt | None = None) -> tuple[dict[str, Tensor], float]:
        trainer = Trainer(config, DATASET, out, reporter=reporter)
        assert trainer.runner.scaler is not None
        trainer.runner.scaler.set_growth_interval(4)  # grows many times in this short run
        trainer.fit(resume=True)
        return trainer.objective.state_dict(), float(trainer.runner.scaler.get_scale())

    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", StopAt(epochs=2))
    parts, scale = fit(tmp_path / "parts")
    through, other = fit(tmp_path / "through")
    assert scale == other > 65536.0
    assert same_tensors(parts, through)


def test_compiled_passes_equal_eager_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    totals, ends, worths = [], [], []
    for compiled in ("false", "true"):
        config = make_config("none", f"training.compile={compiled}")
        objective, runner = started(config)
        totals.append([float(step.total.detach()) for _, step in runner.steps_of(1)])
        worths.append({name: float(value) for name, value in runner._measured.items()})
        ends.append(objective.state_dict())
    assert isinstance(objective.passes, CompiledPasses)
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
    assert worths[1] == pytest.approx(worths[0], rel=1e-3)
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], rtol=1e-3, atol=1e-4), name


def test_the_compiler_steps_around_sparse_products() -> None:
    # Traced and not compiled: the same arithmetic, at once.
    totals = []
    for passes in (Passes, lambda model: CompiledPasses(model, "aot_eager")):
        objective, runner = started(make_config("none", model="grcn"))
        objective.passes = passes(objective.model)
        totals.append([float(step.total.detach()) for _, step in runner.steps_of(1)])
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        DvibError, match=r"training\.compile=true needs a C\+\+ compiler, and 'no-such-compiler' is not"
    ):
        started(make_config("none", "training.compile=true"))


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("the backend\nis broken")

    objective, _ = started(make_config("none"))
    passes = CompiledPasses(objective.model, backend=broken)  # type: ignore[arg-type]
    with pytest.raises(DvibError, match=r"training\.compile=true: the compiler failed: .*is broken.*leave"):
        passes.hidden(Rows())


def test_precision_and_compiler_go_together() -> None:
    objective, _ = started(make_config("none"))
    made = make_passes(objective.model, "bfloat16", CPU, compiled=False)
    assert isinstance(made, MixedPasses)
    assert type(made.inner) is Passes
    assert made.dtype == torch.bfloat16
