"""What a term is worth, and that nobody's training notices being asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.helpers_training import CPU, make_config, make_dataset, planted_blocks, same_tensors, whole_batch
from training import reporting
from training.build import build_objective
from training.checkpoint import load_checkpoint
from training.common.choices import Variant
from training.config import RunConfig
from training.dvib import distillation
from training.dvib.objective import Objective, Part, StepLoss
from training.epoch import EpochRunner
from training.models import MODELS
from training.randomness import stream
from training.reporting import ConsoleReporter, SilentReporter
from training.trainer import Trainer
from training.watch.alarms import NEVER_TRAINED, Alarms, flood_limit
from training.watch.worth import is_measured, norm_of, state_of, worth_of_parts

DATASET = planted_blocks(n_users=12, n_items=40)


def run_epochs(config: RunConfig, epochs: int = 2) -> tuple[Objective, EpochRunner]:
    objective = build_objective(config, DATASET)
    runner = EpochRunner(objective, config, DATASET, CPU)
    for epoch in range(1, epochs + 1):
        objective.train()
        runner.run(epoch)
    return objective, runner


class Bowl(nn.Module):
    """Two parameters whose gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.y = nn.Parameter(torch.tensor([2.0]))


def test_worth_is_the_ratio_of_gradient_norms_by_hand() -> None:
    bowl = Bowl()
    parameters = [bowl.x, bowl.y]
    parts = {
        "bpr": Part(1.0, 0.5 * bowl.x.square().sum(), of_l0=True),  # (3, 4, 0)
        "decay": Part(0.5, 2.0 * bowl.y.square().sum(), of_l0=True),  # half of 4y: (0, 0, 4)
        "distillation": Part(0.1, bowl.x.sum() + bowl.y.sum()),  # .1 (1, 1, 1)
        "entropy": Part(0.0, bowl.x.sum()),  # without weight: not asked
        "variational": Part(2.0, torch.tensor(7.0)),  # a constant
    }
    step = StepLoss(parts["bpr"].value, {}, parts)
    found = {name: float(value) for name, value in worth_of_parts(step, parameters).items()}
    l0 = (9 + 16 + 16) ** 0.5
    assert found == pytest.approx(
        {
            "gradient/l0": l0,
            "worth/bpr": 5 / l0,
            "worth/decay": 4 / l0,
            "worth/distillation": 0.1 * 3**0.5 / l0,
            "worth/variational": 0.0,
        }
    )
    assert bowl.x.grad is None
    assert bowl.y.grad is None
    parts["bpr"].value.backward()  # type: ignore[no-untyped-call]  # the graph is still there
    assert bowl.x.grad is not None


def test_without_l0_the_perturbed_pass_is_what_is_compared_with() -> None:
    bowl = Bowl()
    parts = {
        "bpr": Part(0.0, bowl.x.sum(), of_l0=True),
        "general_perturbed": Part(1.0, 0.5 * bowl.x.square().sum()),
        "distillation": Part(1.0, bowl.y.sum()),
    }
    found = worth_of_parts(StepLoss(bowl.x.sum(), {}, parts), [bowl.x, bowl.y])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"gradient/l0": 5.0, "worth/general_perturbed": 1.0, "worth/distillation": 0.2}
    )
    nothing = {"distillation": parts["distillation"]}
    assert worth_of_parts(StepLoss(bowl.x.sum(), {}, nothing), [bowl.x, bowl.y]) == {}


def test_a_sparse_gradient_has_the_norm_of_the_dense_one() -> None:
    table = nn.Parameter(torch.arange(8.0).reshape(4, 2))
    rows = torch.tensor([1, 3, 1])
    norms = []
    for sparse in (False, True):
        taken = torch.nn.functional.embedding(rows, table, sparse=sparse)
        (gradient,) = torch.autograd.grad(taken.square().sum(), [table])
        norms.append(float(norm_of([gradient, None], table.sum())))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.parametrize("variant", ["none", "constant", "adaptive"])
@pytest.mark.parametrize("mix", ["add", "convex"])
def test_the_parts_weighted_add_up_to_the_total(variant: Variant, mix: str) -> None:
    settings = ("dvib.gamma_d=0.3", "dvib.gamma_r=0.2", "dvib.gamma_0=0.7", "dvib.entropy=0.4", "dvib.sigma=0.5")
    robust = ("robust.amr=true", "robust.amr_weight=0.6")
    gamma_l0 = ("dvib.gamma_l0=0.9",) if variant != "none" else ()
    config = make_config(variant, *settings, *robust, *gamma_l0, f"dvib.mix={mix}")
    objective = build_objective(config, DATASET)
    objective.train().model.begin_epoch(1, stream(1, "model", 1))
    step = objective.step(whole_batch(objective, DATASET, config), stream(1, "noise", 1))
    assert {"bpr", "decay", "entropy", "adversarial"} <= step.parts.keys()
    total = sum(part.weight * float(part.value.detach()) for part in step.parts.values())
    assert total == pytest.approx(float(step.total.detach()), rel=1e-5)
    assert {name for name, part in step.parts.items() if part.of_l0} == {"bpr", "decay"}


@pytest.mark.parametrize("variant", ["none", "adaptive"])
@pytest.mark.parametrize("model", MODELS)
def test_being_watched_does_not_change_a_training_by_a_bit(
    monkeypatch: pytest.MonkeyPatch, model: str, variant: Variant
) -> None:
    monkeypatch.setattr(distillation, "_SCORE_BLOCK", 100)  # more than one block: computed again in each backward pass
    more = ("dvib.entropy=0.1",) if variant == "none" else ()
    unwatched, blind = run_epochs(make_config(variant, *more, "training.watch_every=0", model=model))
    watched, seeing = run_epochs(make_config(variant, *more, "training.watch_every=1", model=model))
    assert same_tensors(unwatched.state_dict(), watched.state_dict())
    assert not any(name.startswith(("worth/", "watch/")) for name in blind.noted)
    assert {"gradient/l0", "watch/hidden_norm"} <= seeing.noted.keys()
    assert ("watch/phi_sd" in seeing.noted) == (variant == "adaptive")
    assert sum(name.startswith("worth/") for name in seeing.noted) >= 2


def test_a_mirrored_step_is_watched_once_and_keeps_its_course() -> None:
    mirrored = ("robust.mg=true", "robust.mg_interval=1", "training.batch_size=300")  # one step, mirrored
    ends = [run_epochs(make_config("adaptive", *mirrored, f"training.watch_every={n}")) for n in (0, 1)]
    assert same_tensors(ends[0][0].state_dict(), ends[1][0].state_dict())
    # The gradient that is logged is that of the step down.
    assert ends[1][1].noted["gradient/max"] == ends[1][1].noted["gradient/mean"]


def test_what_is_measured_is_the_last_full_step_of_the_epoch() -> None:
    config = make_config("adaptive", "training.batch_size=100", "training.watch_every=1")
    _, runner = run_epochs(config, epochs=1)
    objective = build_objective(config, DATASET)
    other = EpochRunner(objective, config, DATASET, CPU)
    objective.train()
    _, step = next(iter(other.steps_of(1)))  # of 100 and 44 interactions: the first is the last full one
    phi = torch.cat([scale.flatten() for scale in step.scales.values()]).detach()
    assert runner.noted["watch/phi_mean"] == pytest.approx(float(phi.mean()), rel=1e-6)
    assert runner.noted["watch/phi_sd"] == pytest.approx(float(phi.std(correction=0)), rel=1e-5)
    assert runner.noted["watch/phi_min"] == float(phi.min())
    assert runner.noted["watch/phi_max"] == float(phi.max())


def test_the_state_of_h_by_hand() -> None:
    step = StepLoss(
        torch.zeros(()),
        {},
        sites={"a": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b": torch.tensor([[6.0, 8.0]])},
        scales={"a": torch.tensor([[0.1], [0.3]], requires_grad=True), "b": torch.tensor([[0.5]], requires_grad=True)},
    )
    found = {name: float(value) for name, value in state_of(step).items()}
    assert found == pytest.approx(
        {
            "watch/hidden_norm": (3.0 + 10.0) / 2,
            "watch/phi_mean": 0.3,
            "watch/phi_sd": (0.08 / 3) ** 0.5,
            "watch/phi_min": 0.1,
            "watch/phi_max": 0.5,
        }
    )


def test_the_first_five_epochs_are_measured_and_then_some() -> None:
    assert [epoch for epoch in range(1, 14) if is_measured(epoch, 3)] == [1, 2, 3, 4, 5, 8, 11]
    assert not any(is_measured(epoch, 0) for epoch in range(1, 14))
    assert all(is_measured(epoch, 1) for epoch in range(1, 14))


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.epochs: list[int] = []

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:  # noqa: ARG002
        self.epochs.append(int(entry["epoch"]))

    def warned(self, message: str) -> None:
        self.heard.append(f"{self.epochs[-1]}: {message}")


def test_the_papers_sigma_makes_a_dead_term_and_the_run_says_so_once(tmp_path: Path) -> None:
    # A true divergence under σ = 1e-3, the largest of the paper's grid.
    def config(epochs: int) -> RunConfig:
        return make_config("constant", "dvib.sigma=0.001", "training.watch_every=2", f"training.epochs={epochs}")

    listener = Listener()
    info = Trainer(config(8), DATASET, tmp_path / "run", reporter=listener).fit()
    assert len(listener.heard) == 1
    assert listener.heard[0].startswith("5: the term distillation teaches nothing: its gradient, weighted, was below")
    cause = "warning/negligible/distillation"
    assert [(int(e["epoch"]), e.get(cause)) for e in info.history if cause in e] == [(5, 5.0), (7, 6.0)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == info.history
    assert load_checkpoint(tmp_path / "run").info.history == info.history
    # Resumed, the run counts on, and is told nothing twice.
    Trainer(config(4), DATASET, tmp_path / "parts").fit()
    again = Listener()
    Trainer(config(6), DATASET, tmp_path / "parts", reporter=again).fit(resume=True)
    assert [line[:2] for line in again.heard] == ["5:"]
    last = Listener()
    Trainer(config(8), DATASET, tmp_path / "parts", reporter=last).fit(resume=True)
    assert last.heard == []


@pytest.mark.parametrize("settings", [("dvib.sigma=0.5",), ("dvib.gamma_d=0",)])
def test_a_living_term_and_one_without_weight_are_not_warned_of(tmp_path: Path, settings: tuple[str, ...]) -> None:
    listener = Listener()
    config = make_config("constant", *settings, "training.epochs=6")
    Trainer(config, DATASET, tmp_path, reporter=listener).fit()
    assert listener.heard == []


def test_a_models_term_of_weight_zero_is_not_warned_of(tmp_path: Path) -> None:
    listener = Listener()
    config = make_config("none", "model.regularisation=0", "training.epochs=6")
    info = Trainer(config, DATASET, tmp_path, reporter=listener).fit()
    assert info.history[0]["worth/decay"] == 0
    assert listener.heard == []


def cold_dataset(n_cold: int) -> Alarms:
    dataset = make_dataset([(0, item) for item in range(20 - n_cold)], [(0, 19)], [(0, 19)], n_users=2, n_items=20)
    return Alarms(dataset, CPU)


def test_the_share_of_never_trained_items_is_counted_in_the_first_twenty_places() -> None:
    alarms = cold_dataset(5)  # 15 to 19
    assert alarms.share == pytest.approx(0.25)
    lists = torch.stack([torch.arange(20), torch.arange(20)])
    assert alarms.ranked(lists) == {NEVER_TRAINED: pytest.approx(0.25)}
    more = torch.cat([torch.full((2, 20), 16), torch.zeros(2, 30, dtype=torch.long)], dim=1)
    assert alarms.ranked(more) == {NEVER_TRAINED: 1.0}
    assert alarms.ranked(torch.tensor([[15, 0, 1, 2]])) == {NEVER_TRAINED: 0.25}
    assert cold_dataset(0).ranked(lists) == {}


def test_a_flood_is_more_than_twice_what_a_blind_ranking_gives() -> None:
    assert flood_limit(0.1) == pytest.approx(0.2)
    assert flood_limit(0.001) == pytest.approx(0.05)  # one place in twenty
    assert flood_limit(0.5) == pytest.approx(0.75)
    assert flood_limit(0.999) < 1
    alarms = cold_dataset(2)
    history: list[dict[str, float]] = []
    told: dict[int, list[str]] = {}
    for epoch, share in enumerate([0.3, 0.3, 0.1, 0.69, 0.69, 0.69, 0.69, 0.69, 0.69, 0.1, 0.2], 1):
        entry = {"epoch": float(epoch), NEVER_TRAINED: share}
        told[epoch] = alarms.judge(entry, history)
        history.append(entry)
    assert {epoch: len(lines) for epoch, lines in told.items() if lines} == {8: 1}
    assert "69% of the first 20 places, for 5 epochs in a row, and are 10.0% of the catalogue" in told[8][0]
    fields = {int(e["epoch"]): e["warning/never_trained"] for e in history if "warning/never_trained" in e}
    assert fields == {8: 5, 9: 6}


def test_the_trap_of_the_specification_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spec §9: a term over the scores of all items, never-trained ones among them, lifts these into every ranking.
    blocks = planted_blocks(n_users=12, n_items=60)
    train = [
        (user, item)
        for user, item in zip(blocks.train.users.tolist(), blocks.train.items.tolist(), strict=True)
        if item < 45
    ]
    pairs = {
        split: list(zip(blocks.splits[split].users.tolist(), blocks.splits[split].items.tolist(), strict=True))
        for split in ("valid", "test")
    }
    dataset = make_dataset(
        train, pairs["valid"], pairs["test"], n_users=12, n_items=60, features=blocks.features, name="cold"
    )
    shares = {}
    for candidates in ("all", "training"):
        monkeypatch.setattr("training.watch.alarms.PLACES", 10)
        listener = Listener()
        settings = ("dvib.entropy=2.0", "dvib.rows=all", f"dvib.candidates={candidates}")
        config = make_config("none", *settings, "training.learning_rate=0.05", "training.epochs=25")
        info = Trainer(config, dataset, tmp_path / candidates, reporter=listener).fit()
        shares[candidates] = info.history[-1][NEVER_TRAINED]
        if candidates == "all":
            assert len(listener.heard) == 1
            assert "items that never occur in training take" in listener.heard[0]
            assert "warning/never_trained" in info.history[-1]
    assert shares["all"] > shares["training"]


def console_lines(entries: list[dict[str, float]]) -> list[str]:
    console = Console(width=400, force_terminal=False, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    reporter = ConsoleReporter(console, make_config("adaptive"))
    for entry in entries:
        reporter.epoch_done(entry, improved=False)
    reporter.warned("the [bold]term[/bold] is dead")
    console.file.close()
    return console.export_text().splitlines()


def test_the_console_shows_worth_now_and_then_and_a_warning_on_its_own_line() -> None:
    watch = {
        "worth/decay": 0.031,
        "worth/distillation": 1.2e-7,
        "gradient/mean": 0.5,
        "gradient/max": 2.0,
        **{f"watch/phi_{name}": value for name, value in (("mean", 0.5), ("sd", 0.01), ("min", 0.4), ("max", 0.6))},
        NEVER_TRAINED: 0.031,
    }
    entries = [
        {"epoch": float(epoch), "train_seconds": 1.0, "loss/bpr": 0.7, "valid/recall@10": 0.1, **watch}
        for epoch in range(1, 13)
    ]
    lines = console_lines(entries)
    extra = [number for number, line in enumerate(lines) if "gradients over L0's" in line]
    assert len(lines) == 12 + 2 + 1
    assert [lines[number - 1].split()[1] for number in extra] == ["1", "11"]
    assert lines[extra[0]].strip() == (
        "gradients over L0's: decay 0.031, distillation 1.2e-07; gradient 0.5, at most 2; "
        "φ 0.500 ± 0.010, 0.400 to 0.600; never trained: 3.1% of the first 20"
    )
    assert lines[-1] == "warning: the [bold]term[/bold] is dead"
    assert reporting.EPOCHS_BETWEEN_WORTH == 10


def test_an_old_log_without_any_of_it_is_shown_as_before() -> None:
    lines = console_lines([{"epoch": 1.0, "train_seconds": 1.0, "loss/bpr": 0.7, "valid/recall@10": 0.1}])
    assert lines[0] == "epoch   1   1.00s  bpr 0.7  valid recall@10 0.1000"
    assert len(lines) == 2


def test_a_run_may_be_resumed_with_another_interval_of_watching(tmp_path: Path) -> None:
    def fit(out: Path, epochs: int, every: int) -> Tensor:
        config = make_config("none", f"training.epochs={epochs}", f"training.watch_every={every}")
        Trainer(config, DATASET, out).fit(resume=True)
        return load_checkpoint(out).model["users"]

    fit(tmp_path / "parts", 2, 1)
    assert torch.equal(fit(tmp_path / "parts", 4, 0), fit(tmp_path / "through", 4, 1))
