from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers_training import CPU, VARIANTS, make_config, make_dataset, planted_blocks, same_tensors, trained
from training.build import build_model, build_objective
from training.checkpoint import load_checkpoint
from training.common.choices import Variant
from training.common.errors import ConfigError, DataError, DvibError
from training.device import resolve_device
from training.epoch import DivergedError, EpochRunner
from training.evaluation import EvaluationSet, evaluate_model
from training.stopping import EarlyStopping
from training.trainer import Trainer

DATASET = planted_blocks()


def test_early_stopping_counts_evaluations_without_an_improvement() -> None:
    stopping = EarlyStopping(patience=2)
    improved = [stopping.update(value, epoch) for epoch, value in enumerate([0.1, 0.3, 0.3, 0.2], start=1)]
    assert improved == [True, True, False, False]  # an equal value is no improvement
    assert (stopping.best, stopping.best_epoch, stopping.stop) == (0.3, 2, True)
    assert stopping.update(0.31, 5)
    assert not stopping.stop


def test_early_stopping_can_compare_rounded_values() -> None:
    stopping = EarlyStopping(patience=5, decimals=4)
    assert [stopping.update(value, 1) for value in (0.12341, 0.12344, 0.12351)] == [True, False, True]


def test_the_first_evaluation_is_always_the_best_so_far() -> None:
    assert EarlyStopping(patience=1).update(0.0, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_ends_by_patience_and_keeps_its_best_epoch(tmp_path: Path, variant: Variant) -> None:
    config = make_config(variant, "training.learning_rate=0.05", "training.patience=3", "training.epochs=60")
    info = Trainer(config, DATASET, tmp_path, ks=(5,)).fit()
    values = [entry["valid/recall@10"] for entry in info.history]
    assert len(values) < 60
    assert info.epoch == 1 + values.index(max(values))
    assert len(values) == info.epoch + 3
    assert info.finished
    assert info.metrics["valid"]["recall@10"] == max(values)
    # What is stored is the best epoch's model, not the last one's, and its metrics are what the stored tensors give.
    found = load_checkpoint(tmp_path)
    assert found.info == info
    best = trained(config, DATASET, info.epoch)
    assert same_tensors(found.model, best.model.state_dict())
    assert same_tensors(found.dvib, {name: value.detach() for name, value in best.own_parameters().items()})
    assert not same_tensors(found.model, trained(config, DATASET, len(values)).model.state_dict())
    model = build_model(config, DATASET)
    model.load_state_dict(found.model)
    for split in ("valid", "test"):
        data = EvaluationSet.of(DATASET, split)
        assert evaluate_model(model, data, DATASET.n_items, (5, 10)) == info.metrics[split]


def test_the_test_split_has_no_say_in_training(tmp_path: Path) -> None:
    other = planted_blocks()
    pairs = [list(zip(part.users.tolist(), part.items.tolist(), strict=True)) for part in other.splits.values()]
    changed = make_dataset(
        pairs[0],
        pairs[1],
        [(user, 59 - item) for user, item in pairs[2]],
        n_users=other.n_users,
        n_items=other.n_items,
        features=other.features,
        name=other.name,
    )
    config = make_config("none", "training.epochs=3")
    infos = [Trainer(config, data, tmp_path / str(place)).fit() for place, data in enumerate((DATASET, changed))]
    found = [load_checkpoint(tmp_path / name) for name in ("0", "1")]
    assert same_tensors(found[0].model, found[1].model)
    assert infos[0].epoch == infos[1].epoch
    assert infos[0].metrics["valid"] == infos[1].metrics["valid"]
    assert infos[0].metrics["test"] != infos[1].metrics["test"]


def test_the_log_has_one_line_per_epoch_with_every_term(tmp_path: Path) -> None:
    config = make_config("adaptive", "training.epochs=2", preset="reference")
    info = Trainer(config, DATASET, tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == info.history
    assert [line["epoch"] for line in lines] == [1, 2]
    terms = {"total", "bpr", "decay", "general", "general_perturbed", "distillation", "js", "variational"}
    terms |= {"phi_mean", "hidden_norm"}
    for line in lines:
        assert {f"loss/{name}" for name in terms} == {name for name in line if name.startswith("loss/")}
        assert {"train_seconds", "valid_seconds", "valid/recall@10", "valid/ndcg@50"} <= set(line)
        assert all(math.isfinite(value) for value in line.values())


def test_training_lowers_the_loss_and_beats_the_start(tmp_path: Path) -> None:
    config = make_config("none", "training.learning_rate=0.05", "training.epochs=8")
    info = Trainer(config, DATASET, tmp_path).fit()
    losses = [entry["loss/bpr"] for entry in info.history]
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)  # a coin's toss at the start
    assert losses[-1] < 0.8 * losses[0]
    start = evaluate_model(build_model(config, DATASET), EvaluationSet.of(DATASET, "test"), DATASET.n_items, (10,))
    assert info.metrics["test"]["recall@10"] > start["recall@10"]


def test_a_diverging_run_says_so_and_keeps_what_it_had(tmp_path: Path) -> None:
    good = make_config("none", "training.epochs=1")
    Trainer(good, DATASET, tmp_path).fit()
    bad = make_config("constant", "training.epochs=3", "training.learning_rate=1e30")
    with pytest.raises(DivergedError, match=r"epoch 1, step 2 of 5: the loss is not .*\(total, bpr.*learning_rate"):
        Trainer(bad, DATASET, tmp_path / "bad").fit()
    assert load_checkpoint(tmp_path).info.finished


def test_a_monitor_beyond_the_catalogue_is_refused(tmp_path: Path) -> None:
    small = planted_blocks(n_users=4, n_items=40)
    with pytest.raises(ConfigError, match=r"training\.monitor=recall@41 exceeds the catalogue of 40 items"):
        Trainer(make_config("none", "training.monitor=recall@41"), small, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_users_who_own_everything_are_left_out_of_training(caplog: pytest.LogCaptureFixture) -> None:
    train = [(0, item) for item in range(12)] + [(1, 0), (2, 3), (2, 4)]
    dataset = make_dataset(train, [(1, 1)], [(1, 2)], n_users=3, n_items=12)
    config = make_config("none")
    model_of = trained(config, dataset, 0)
    runner = EpochRunner(model_of, config, dataset, torch.device("cpu"))
    assert "12 interactions of users who own every item are left out" in caplog.text
    users, positives, _ = (torch.cat(parts) for parts in zip(*runner.triples(1), strict=True))
    assert sorted(zip(users.tolist(), positives.tolist(), strict=True)) == [(1, 0), (2, 3), (2, 4)]


def test_a_data_set_without_any_negative_is_refused() -> None:
    dataset = make_dataset([(0, 0), (0, 1)], [(0, 0)], [(0, 1)], n_users=1, n_items=2)
    with pytest.raises(DataError, match="tiny: every user owns every training item"):
        trained(make_config("none"), dataset, 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_an_unknown_device(name: str) -> None:
    with pytest.raises(DvibError, match=f"no device '{name}'; use auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(DvibError, match=r"no device 'cuda:99' here: \d+ CUDA devices found; use --device cpu"):
        resolve_device("cuda:99")


@pytest.mark.parametrize("variant", ["none", "adaptive"])
def test_ranking_before_the_last_step_stores_those_weights_and_trains_on_from_the_stepped_ones(
    tmp_path: Path, variant: Variant
) -> None:
    epochs = 4
    config = make_config(variant, f"training.epochs={epochs}", "training.rank_before_last_step=true")
    info = Trainer(config, DATASET, tmp_path / "through").fit()
    stored = load_checkpoint(tmp_path / "through")
    # The same training by hand, stopped one step early in the best epoch.
    objective = build_objective(config, DATASET)
    runner = EpochRunner(objective, config, DATASET, CPU)
    for epoch in range(1, info.epoch):
        runner.run(epoch)
    steps = runner.steps_of(info.epoch)
    for _ in range(runner.steps - 1):
        next(steps)
    assert same_tensors(stored.model, objective.model.state_dict())
    data = EvaluationSet.of(DATASET, "valid")
    metrics = evaluate_model(objective.model, data, DATASET.n_items, (10,))
    assert info.metrics["valid"]["recall@10"] == metrics["recall@10"]
    next(steps)
    assert not same_tensors(stored.model, objective.model.state_dict())
    # Training itself does not know of it, and neither does a resumed run.
    usual = make_config(variant, f"training.epochs={epochs}")
    Trainer(usual, DATASET, tmp_path / "usual").fit()
    last = [load_file(tmp_path / name / "last" / "parameters.safetensors") for name in ("through", "usual")]
    assert same_tensors(*last)
    shorter = make_config(variant, "training.epochs=2", "training.rank_before_last_step=true")
    Trainer(shorter, DATASET, tmp_path / "parts").fit()
    again = Trainer(config, DATASET, tmp_path / "parts").fit(resume=True)
    assert again.metrics == info.metrics
    assert same_tensors(load_checkpoint(tmp_path / "parts").model, stored.model)
