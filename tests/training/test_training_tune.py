from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.helpers_training import Interrupted, make_config, planted_blocks, write_mmrec
from tests.training.commands import command, error_line
from training import trainer as trainer_module
from training.checkpoint import load_checkpoint
from training.common.choices import Variant
from training.common.errors import ConfigError, DvibError
from training.evaluation import evaluate_model
from training.models import MODELS
from training.runs import tune as module
from training.runs.config_file import with_settings
from training.runs.space import FIXED, Axis, read_space
from training.runs.study import VariantStudy
from training.runs.tune import Search, Winner, tune
from training.trainer import Trainer

DATASET = planted_blocks()
SHARED = {"training.learning_rate": Axis(low=0.001, high=0.1, log=True), "model.dimension": Axis(choices=(4, 8))}
OWN = {"dvib.gamma_d": Axis(low=0.01, high=0.5, log=True)}
SPACES: dict[Variant, dict[str, Axis]] = {"none": SHARED, "adaptive": {**SHARED, **OWN}}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(DATASET, folder)
    return folder


class Watch:
    """Keeps what was tried, and kills the search inside a chosen epoch of a chosen trial."""

    def __init__(self, kill_at: tuple[int, int] | None = None) -> None:
        self.tried: dict[str, dict[int, Mapping[str, Any]]] = {"none": {}, "adaptive": {}}
        self.results: list[tuple[str, int, str, bool]] = []
        self.epochs = 0
        self._kill_at, self._begun = kill_at, 0

    def begin(self, variant: Variant, slot: int, settings: Mapping[str, Any]) -> None:
        self.tried[variant][slot] = settings
        self._begun += 1

    def epoch(self, epoch: int, value: float) -> None:  # noqa: ARG002
        self.epochs += 1
        if self._kill_at == (self._begun, epoch):
            raise Interrupted

    def end(self, variant: Variant, slot: int, result: str, *, known: bool) -> None:
        self.results.append((variant, slot, result, known))


def search(folder: Path, data_dir: Path, trials: int = 4, epochs: int = 3, **more: Any) -> Search:
    configs: dict[Variant, Any] = {
        variant: make_config(variant, f"training.epochs={epochs}", "training.batch_size=64") for variant in SPACES
    }
    return Search(folder / "study.sqlite", configs, SPACES, trials, data_dir=data_dir, **more)


def outcome(winners: list[Winner]) -> list[tuple[Any, ...]]:
    return [(w.variant, w.counts, w.slot, dict(w.settings), w.valid, w.epoch, dict(w.test)) for w in winners]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[Search, Watch, list[Winner]]:
    """A search that nobody disturbed."""
    whole, watch = search(tmp_path_factory.mktemp("through"), data_dir), Watch()
    return whole, watch, tune(whole, watch)


def test_both_variants_get_the_same_number_of_trials_and_the_same_shared_values(
    through: tuple[Search, Watch, list[Winner]],
) -> None:
    _, watch, winners = through
    assert [(winner.variant, winner.counts.total) for winner in winners] == [("none", 4), ("adaptive", 4)]
    for slot in range(4):
        plain, dvib = watch.tried["none"][slot], watch.tried["adaptive"][slot]
        assert set(plain) == set(SHARED)
        assert set(dvib) == {*SHARED, *OWN}
        assert {key: dvib[key] for key in SHARED} == plain
        assert 0.001 <= plain["training.learning_rate"] <= 0.1
        assert 0.01 <= dvib["dvib.gamma_d"] <= 0.5
    assert len({plain["training.learning_rate"] for plain in watch.tried["none"].values()}) == 4
    # They take turns, so that a search that is stopped has been fair as well.
    assert [(variant, slot) for variant, slot, _, _ in watch.results] == [
        (variant, slot) for slot in range(4) for variant in ("none", "adaptive")
    ]


def test_the_winner_is_the_best_on_validation_trained_as_ever(
    tmp_path: Path, through: tuple[Search, Watch, list[Winner]]
) -> None:
    whole, watch, winners = through
    for winner in winners:
        data = load_checkpoint(winner.folder).dataset
        infos = {}
        for slot, settings in watch.tried[winner.variant].items():
            config = with_settings(whole.configs[winner.variant], settings)
            infos[slot] = Trainer(config, data, tmp_path / winner.variant / str(slot)).fit()
        best = max(infos, key=lambda slot: infos[slot].metrics["valid"]["recall@10"])
        assert (winner.slot, winner.epoch) == (best, infos[best].epoch)
        assert winner.valid == infos[best].metrics["valid"]["recall@10"]
        assert winner.test == infos[best].metrics["test"]
        stored = load_checkpoint(winner.folder).info
        assert (stored.metrics, stored.finished, stored.config) == (infos[best].metrics, True, infos[best].config)
        # The other trials' runs are gone: each holds a copy of the features.
        assert [path.name for path in winner.folder.parent.iterdir()] == [f"trial-{best + 1:03d}"]


def test_the_test_split_is_read_once_for_each_winner_and_after_all_trials(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    interactions = len(DATASET.splits["test"].users)
    assert interactions == len(DATASET.splits["valid"].users)

    def watched(model: Any, data: Any, *more: Any) -> dict[str, float]:
        found = {item for user in range(3) for item in data.truth.items[data.truth.offsets[user] :][:3].tolist()}
        wanted = {item for u, item in zip(*_pairs("test"), strict=True) if u < 3}
        events.append("test" if found == wanted else "valid")
        return evaluate_model(model, data, *more)

    monkeypatch.setattr(trainer_module, "evaluate_model", watched)
    whole = search(tmp_path, data_dir, trials=2, epochs=2)
    winners = tune(whole, Watch())
    assert events == ["valid"] * 8 + ["test"] * 2
    # Asked again, nothing is computed anew.
    events.clear()
    watch = Watch()
    assert outcome(tune(whole, watch)) == outcome(winners)
    assert events == []
    assert all(known for *_, known in watch.results)
    with pytest.raises(ConfigError, match="is closed: after 2 trials the test split was read"):
        tune(replace(whole, trials=3), Watch())
    with pytest.raises(ConfigError, match="holds 2 trials of none already"):
        tune(replace(whole, trials=1), Watch())
    assert events == []


def _pairs(split: Any) -> tuple[list[int], list[int]]:
    part = DATASET.splits[split]
    return part.users.tolist(), part.items.tolist()


@pytest.mark.parametrize("prune", [False, True])
def test_a_killed_search_goes_on_to_the_same_result(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, prune: bool
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", -1.0)
    undisturbed = Watch()
    expected = tune(search(tmp_path / "through", data_dir, trials=3, prune=prune), undisturbed)
    broken = search(tmp_path / "killed", data_dir, trials=3, prune=prune)
    broken.file.parent.mkdir()
    for moment in ((1, 1), (2, 3), (3, 2)):
        with pytest.raises(Interrupted):
            tune(broken, Watch(moment))
    last = Watch()
    assert outcome(tune(broken, last)) == outcome(expected)
    assert sum(known for *_, known in last.results) == 3  # what was over stayed over
    # Killed in its second epoch, a trial goes on from the first; if it may be pruned, all its epochs must be reported.
    assert last.epochs == (9 if prune else 8)
    for variant, tried in last.tried.items():
        assert all(undisturbed.tried[variant][slot] == settings for slot, settings in tried.items())
    for variant in ("none", "adaptive"):
        study = optuna.load_study(study_name=variant, storage=f"sqlite:///{broken.file}")
        states = [trial.state for trial in study.trials]
        assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 3
        assert TrialState.RUNNING not in states
    # Three kills, three trials marked as failed, none of them counted.
    failed = [
        trial
        for variant in ("none", "adaptive")
        for trial in optuna.load_study(study_name=variant, storage=f"sqlite:///{broken.file}").trials
        if trial.state is TrialState.FAIL
    ]
    assert len(failed) == 3


def test_killed_before_or_between_the_tests_of_the_winners(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, through: tuple[Search, Watch, list[Winner]]
) -> None:
    whole = search(tmp_path, data_dir)
    close = VariantStudy.close
    closed: list[str] = []

    def kill_second(self: VariantStudy, test: Mapping[str, float]) -> None:
        closed.append("")
        if len(closed) == 2:
            raise Interrupted
        close(self, test)

    with monkeypatch.context() as patch:
        patch.setattr(VariantStudy, "close", kill_second)
        with pytest.raises(Interrupted):
            tune(whole, Watch())
    shutil.rmtree(whole.folder("none", 0).parent)  # a run that somebody removed is not needed any more …
    shutil.rmtree(whole.folder("adaptive", 0).parent)  # … or is made again
    assert outcome(tune(whole, Watch())) == outcome(through[2])


def test_a_trial_that_cannot_be_trained_counts(tmp_path: Path, data_dir: Path) -> None:
    rates = {"training.learning_rate": Axis(choices=(0.01, 1e30))}
    whole = replace(search(tmp_path, data_dir, trials=6), spaces={"none": rates, "adaptive": rates})
    winners = tune(whole, Watch())
    for winner in winners:
        assert winner.counts.total == 6
        assert winner.settings == {"training.learning_rate": 0.01}
    assert winners[1].counts.failed > 0
    assert winners[1].counts.failed + winners[1].counts.complete == 6
    watch = Watch()
    assert outcome(tune(whole, watch)) == outcome(winners)
    assert any("DivergedError" in result for *_, result, _ in watch.results)
    hopeless = {"training.learning_rate": Axis(choices=(1e30,))}
    whole = replace(search(tmp_path / "b", data_dir, trials=1), spaces={"none": rates, "adaptive": hopeless}, seed=1)
    with pytest.raises(DvibError, match="every trial failed"):
        tune(whole, Watch())


def test_unequal_counts_are_never_reported(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._Tuning._trial

    def unfair(self: Any, variant: Variant, study: VariantStudy, slot: int) -> None:
        if (variant, slot) != ("none", 1):
            original(self, variant, study, slot)

    monkeypatch.setattr(module._Tuning, "_trial", unfair)
    with pytest.raises(DvibError, match=r"different numbers of trials: \{'none': 1, 'adaptive': 2\}"):
        tune(search(tmp_path, data_dir, trials=2), Watch())


def test_pruning_stops_what_is_worse_than_the_median(tmp_path: Path, data_dir: Path) -> None:
    rates = {"training.learning_rate": Axis(choices=(1e-9, 1e-8, 0.03, 0.1))}
    spaces: dict[Variant, dict[str, Axis]] = {"none": rates, "adaptive": rates}
    watch = Watch()
    winners = tune(replace(search(tmp_path, data_dir, trials=8, epochs=6, prune=True), spaces=spaces), watch)
    assert all(winner.counts.total == 8 for winner in winners)
    assert sum(winner.counts.pruned for winner in winners) > 0
    assert sum(result == "pruned" for *_, result, _ in watch.results) == sum(w.counts.pruned for w in winners)
    assert watch.epochs < 2 * 8 * 6
    assert all(winner.valid > 0 for winner in winners)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"another seed \(0 → 1\)"),
        ({"prune": True}, r"another prune \(false → true\)"),
        ({"epochs": 5}, r"another config\.training\.epochs \(3 → 5\)"),
        (
            {"spaces": {**SPACES, "none": {"training.learning_rate": Axis(low=0.001, high=0.2, log=True)}}},
            "another space",
        ),
    ],
)
def test_a_study_goes_on_only_as_it_was_begun(
    data_dir: Path, through: tuple[Search, Watch, list[Winner]], change: dict[str, Any], message: str
) -> None:
    whole, _, _ = through
    changed = dict(change)
    epochs = changed.pop("epochs", 3)
    other = replace(search(whole.file.parent, data_dir, epochs=epochs), **changed)
    with pytest.raises(ConfigError, match=f"the study was begun with {message}"):
        tune(other, Watch())


def test_a_search_on_other_data_or_in_a_foreign_file_is_refused(tmp_path: Path, data_dir: Path) -> None:
    tune(search(tmp_path, data_dir, trials=1, epochs=1), Watch())
    write_mmrec(planted_blocks(seed=1), tmp_path / "other")
    with pytest.raises(ConfigError, match="the study was begun with another fingerprint"):
        tune(search(tmp_path, tmp_path / "other", trials=1, epochs=1), Watch())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "study.sqlite").write_text("this is no database " * 100)
    with pytest.raises(ConfigError, match=r"study\.sqlite cannot be used as a study"):
        tune(search(foreign, data_dir, trials=1, epochs=1), Watch())
    assert (foreign / "study.sqlite").read_text().startswith("this is no database")


@pytest.mark.parametrize("model", MODELS)
def test_the_built_in_space_is_the_same_for_the_plain_model_and_says_its_sources(model: str) -> None:
    plain = read_space(None, model, "none")
    assert {"training.learning_rate"} < set(plain)
    assert not any(key.startswith("dvib.") for key in plain)
    variants: tuple[tuple[Variant, str], ...] = (("constant", "dvib.sigma"), ("adaptive", "dvib.gamma_r"))
    for variant, own in variants:
        dvib = read_space(None, model, variant)
        assert list(dvib)[: len(plain)] == list(plain)
        assert {key: dvib[key] for key in plain} == plain
        assert set(dvib) == {*plain, own, "dvib.gamma_d"}
        assert all(axis.source for axis in dvib.values())
        configs = {variant: make_config(variant, model=model)}
        module.check_search(Search(Path("x"), configs, {variant: dvib}, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share: {}", "unknown key 'share'; did you mean 'shared'?"),
        ("shared: {training.learning_rte: {choices: [1]}}", "did you mean 'training.learning_rate'?"),
        ("shared: {training.learning_rate: 3}", "shared.training.learning_rate: "),
        ("shared: {training.learning_rate: {low: 1}}", "either low and high, or choices are wanted"),
        ("shared: {training.learning_rate: {low: 2, high: 1}}", "low 2 is above high 1"),
        ("shared: {training.learning_rate: {low: 0, high: 1, log: true}}", "log wants a low above 0, got 0"),
        ("shared: {training.learning_rate: {choices: []}}", "shared.training.learning_rate.choices"),
        ("shared: {}", "nothing to search for vbpr"),
        (
            "shared: {dvib.gamma_d: {choices: [1]}}\nadaptive: {dvib.gamma_d: {choices: [2]}}",
            "adaptive.dvib.gamma_d is there already in another section",
        ),
        *[
            (f"shared: {{{key}: {{choices: [1]}}}}", f"shared.{key} cannot be searched: {why}")
            for key, why in FIXED.items()
        ],
    ],
)
def test_a_mistake_in_a_space_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_space(path, "vbpr", "adaptive")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_range_is_tried_at_both_ends_before_the_first_trial(tmp_path: Path, data_dir: Path) -> None:
    for axis in (Axis(low=-1, high=4), Axis(low=1, high=99_999_999), Axis(choices=(8, "wide"))):
        spaces: dict[Variant, dict[str, Axis]] = {"none": {"model.dimension": axis}, "adaptive": SHARED}
        with pytest.raises(ConfigError, match=r"the search space of model\.dimension: model\.dimension: "):
            tune(replace(search(tmp_path, data_dir), spaces=spaces), Watch())
    assert list(tmp_path.iterdir()) == []


def test_the_command_searches_and_shows_the_counts(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "shared: {training.learning_rate: {low: 1e-3, high: 1e-1, log: true}}\n"
        "adaptive:\n  dvib.gamma_r: {choices: [0.1]}\n"
    )
    arguments = [
        "--study",
        tmp_path / "s" / "t.sqlite",
        "--dataset",
        "planted",
        "--data-dir",
        data_dir,
        "--space",
        space,
    ]
    arguments += ["--device", "cpu", "--epochs", 2, "--json", tmp_path / "t.json", "--set", "training.monitor=ndcg@5"]
    arguments += ["--set", "model.dimension=8", "--set", "training.batch_size=64"]
    assert command("tune", *arguments, "--trials", 2) == 0
    shown, progress = capsys.readouterr()
    lines = {
        line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()[:1] in (["none"], ["adaptive"])
    }
    assert (lines["none"][:3], lines["adaptive"][:3]) == (["2", "0", "0"], ["2", "0", "0"])
    assert "valid ndcg@5" in shown
    assert progress.count(": validation ndcg@5 ") == 4
    document = json.loads((tmp_path / "t.json").read_text())
    assert [entry["trials"] for entry in document["winners"]] == [2, 2]
    assert set(document["winners"][1]["settings"]) == {"training.learning_rate", "dvib.gamma_r"}
    runs = [entry["run"] for entry in document["winners"]]
    assert f"dvib-train compare {' '.join(runs)}" in shown
    assert command("compare", *runs, "--metrics", "ndcg@5", "--device", "cpu") == 0
    capsys.readouterr()
    assert command("tune", *arguments, "--trials", 3) == 2
    assert "is closed: after 2 trials" in capsys.readouterr().err
    assert command("tune", *arguments, "--trials", 2, "--dvib", "adaptve") == 2
    assert "no variant 'adaptve'; did you mean 'adaptive'?" in error_line(capsys)
    assert command("tune", "--study", tmp_path, "--trials", 1) == 2
    assert "is a folder; a file is wanted" in error_line(capsys)
