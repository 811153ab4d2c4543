"""A search for settings that is fair by construction: the plain model and DVIB get the same number of trials.

Every variant has a study of its own, with the same sampler's seed, the same ranges for the keys that they share and
the same budget; trials take turns. A trial is judged on the validation split alone. The test split is read when all
trials are over, once, by each variant's winner; after that no trial may follow.

The runs are kept in ``FILE.runs/VARIANT``: each variant's best so far, and the one that is being trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from optuna.trial import FrozenTrial, Trial

from training.checkpoint import CheckpointInfo
from training.common.choices import Variant
from training.common.errors import ConfigError, DvibError, nearest, shown
from training.config import RunConfig
from training.epoch import DivergedError
from training.reporting import SilentReporter
from training.runs.config_file import with_settings
from training.runs.data import DataSource
from training.runs.lock import exclusive
from training.runs.space import Axis
from training.runs.study import Trials, VariantStudy, value_of
from training.trainer import Trainer

_ENDS = {"lowest": 0, "highest": -1}
"""The ends of an axis, and where they are among its probes."""


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        file: The studies' SQLite file.
        configs: Variant → configuration that trials start from.
        spaces: Variant → key → axis.
        trials: For each variant.
        seed: Of the samplers.
        prune: Stop trials that are worse than the median of the others at the same epoch.
        data_dir: Where data sets are.
        device: Where to train.
    """

    file: Path
    configs: Mapping[Variant, RunConfig]
    spaces: Mapping[Variant, Mapping[str, Axis]]
    trials: int
    seed: int = 0
    prune: bool = False
    data_dir: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def monitor(self) -> str:
        """The validation metric that decides."""
        return next(iter(self.configs.values())).training.monitor

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.file.with_name(f"{self.file.name}.runs")

    def folder(self, variant: Variant, slot: int) -> Path:
        """Return a trial's run folder."""
        return self.runs / variant / f"trial-{slot + 1:03d}"


@dataclass(frozen=True)
class Winner:
    """The best of a variant's trials.

    Attributes:
        variant: The plain model, or which DVIB.
        counts: Of the trials.
        slot: Its place among them, from 0.
        settings: Key → value.
        valid: The monitored validation metric.
        epoch: Its best epoch.
        test: Test metrics, computed once.
        folder: Its run, complete.
    """

    variant: Variant
    counts: Trials
    slot: int
    settings: Mapping[str, Any]
    valid: float
    epoch: int
    test: Mapping[str, float]
    folder: Path


class TuneWatcher(Protocol):
    """Is told what happens."""

    def begin(self, variant: Variant, slot: int, settings: Mapping[str, Any]) -> None:
        """A trial begins."""

    def epoch(self, epoch: int, value: float) -> None:
        """Its validation metric after an epoch."""

    def end(self, variant: Variant, slot: int, result: str, *, known: bool) -> None:
        """It is over, or was ``known`` to be."""


class _Pruned(Exception):  # noqa: N818  # no error: the trial ends here as it should
    """The trial is worse than the others."""


class _BadSettingsError(Exception):
    """The trial failed through its own settings."""

    def __init__(self, reason: DvibError) -> None:
        super().__init__(f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}")


class _TrialReporter(SilentReporter):
    """Tells the watcher, and optuna where trials may be pruned."""

    def __init__(self, monitor: str, watcher: TuneWatcher, trial: Trial | None) -> None:
        self._monitor, self._watcher, self._trial = monitor, watcher, trial

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:  # noqa: ARG002
        """Report the epoch's validation metric.

        Raises:
            _Pruned: The trial is not worth more epochs.
        """
        epoch, value = int(entry["epoch"]), entry[f"valid/{self._monitor}"]
        self._watcher.epoch(epoch, value)
        if self._trial is not None:
            self._trial.report(value, epoch)
            if self._trial.should_prune():
                raise _Pruned


def check_search(search: Search) -> None:
    """Try both ends of every range and every choice, each alone and all of a variant together, before the first trial.

    Raises:
        ConfigError: A configuration would not take a value, or variants are judged by different metrics.
    """
    monitors = {config.training.monitor for config in search.configs.values()}
    if len(monitors) > 1:
        raise ConfigError(f"the variants are judged by different metrics ({', '.join(monitors)}); --set the same")
    for variant, axes in search.spaces.items():
        for key, axis in axes.items():
            for value in axis.probes:
                _probe(search, variant, {key: value}, key)
        for end in _ENDS:
            _probe(search, variant, _corner(axes, end), f"{variant} at its {end} ends")


def _probe(search: Search, variant: Variant, settings: Mapping[str, Any], what: str) -> None:
    try:
        with_settings(search.configs[variant], settings)
    except ConfigError as error:
        raise ConfigError(f"the search space of {what}: {error}") from error


def _corner(axes: Mapping[str, Axis], end: str) -> dict[str, Any]:
    """Return every key's lowest or highest value, its first or last choice."""
    return {key: axis.probes[_ENDS[end]] for key, axis in axes.items()}


def _trainable(search: Search, data: DataSource) -> None:
    """Build what trials would, and make one step: what no trial could do is no trial's result.

    Raises:
        DvibError: The device, the compiler or the data do not allow what a configuration asks for, or its settings do
            not go together.
    """
    for variant, axes in search.spaces.items():
        lowest = _corner(axes, "lowest")
        tried = [_corner(axes, end) for end in _ENDS]
        # How to train is what a device may refuse.
        for key, axis in axes.items():
            if key.startswith("training.") and axis.choices is not None:
                tried += [{**lowest, key: choice} for choice in axis.choices[1:]]
        for settings in tried:
            config = with_settings(search.configs[variant], settings)
            trainer = Trainer(config, data.of(config)[0], search.folder(variant, 0), device=search.device)
            with suppress(DivergedError):  # that is a trial's result
                next(trainer.runner.steps_of(epoch=1))


def tune(search: Search, watcher: TuneWatcher) -> list[Winner]:
    """Make the trials that are missing, choose on validation, and read the test split once for each winner.

    Args:
        search: What is searched.
        watcher: Is told what happens.

    Returns:
        Each variant's winner, in the search's order.

    Raises:
        ConfigError: The file's studies were begun otherwise, are closed, or hold more trials than are asked for.
        DvibError: Every trial of a variant failed; or a trial broke for another reason than its settings. Asked again,
            the search then goes on with that trial.
    """
    check_search(search)
    with exclusive(search.runs):
        return _Tuning(search, watcher).run()


class _Tuning:
    def __init__(self, search: Search, watcher: TuneWatcher) -> None:
        self.search, self.watcher = search, watcher
        self.data = DataSource(search.data_dir)
        if not search.file.exists():
            # A study that is begun with settings that cannot be trained would be of no use.
            _trainable(search, self.data)
        self.studies = {variant: self._study(variant) for variant in search.configs}

    def _study(self, variant: Variant) -> VariantStudy:
        search, config = self.search, self.search.configs[variant]
        _, fingerprint = self.data.of(config)
        axes = search.spaces[variant]
        definition = {
            "config": config.model_dump(mode="json"),
            "space": {key: axis.document() for key, axis in axes.items()},
            "seed": search.seed,
            "prune": search.prune,
            "fingerprint": fingerprint,
        }
        return VariantStudy(search.file, variant, definition, axes, seed=search.seed, prune=search.prune)

    def run(self) -> list[Winner]:
        for variant, study in self.studies.items():
            study.settle()
            made = study.counts().total
            if made > self.search.trials:
                raise ConfigError(
                    f"{self.search.file} holds {made} trials of {variant} already; ask for as many, or for more"
                )
            if study.test is not None and made < self.search.trials:
                raise ConfigError(
                    f"{self.search.file} is closed: after {made} trials the test split was read; to make more trials, "
                    "choose another --study"
                )
        for slot in range(self.search.trials):
            for variant, study in self.studies.items():
                self._trial(variant, study, slot)
        counts = {variant: study.counts().total for variant, study in self.studies.items()}
        if set(counts.values()) != {self.search.trials}:
            raise DvibError(f"the variants have different numbers of trials: {counts}; this is a mistake of ours")
        # Nothing is read from the test split before every variant's winner is known: after that no trial may follow.
        winners = {variant: self._best(variant) for variant in self.studies}
        return [self._winner(variant, best) for variant, best in winners.items()]

    def _trial(self, variant: Variant, study: VariantStudy, slot: int) -> None:
        known = study.known(slot)
        if known is not None:
            error = known.user_attrs.get("error")
            self.watcher.end(variant, slot, error or known.state.name.lower(), known=True)
            return
        trial, settings = study.ask(slot)
        self.watcher.begin(variant, slot, settings)
        folder = self.search.folder(variant, slot)
        if self.search.prune:
            # The epochs before a kill were reported to a trial that is gone: they are made again.
            shutil.rmtree(folder, ignore_errors=True)
        reporter = _TrialReporter(self.search.monitor, self.watcher, trial if self.search.prune else None)
        try:
            info = self._trained(variant, settings, folder, reporter)
        except _Pruned:
            study.prune(trial)
            result = "pruned"
        except _BadSettingsError as error:
            result = f"failed: {error}"
            study.fail(trial, result)
        else:
            value = info.metrics["valid"][self.search.monitor]
            study.complete(trial, value, {"epoch": info.epoch})
            result = f"validation {self.search.monitor} {value:.4f}, epoch {info.epoch}"
        self._tidy(variant, study)
        self.watcher.end(variant, slot, result, known=False)

    def _trained(
        self, variant: Variant, settings: Mapping[str, Any], folder: Path, reporter: _TrialReporter
    ) -> CheckpointInfo:
        """Train a trial.

        Raises:
            _BadSettingsError: Its settings do not go together, or diverge: that counts, and the search goes on.
                Whatever else breaks says nothing about them; the trial is left as if killed, and is made again.
        """
        try:
            config = with_settings(self.search.configs[variant], settings)
        except ConfigError as error:
            raise _BadSettingsError(error) from error
        dataset, _ = self.data.of(config)
        trainer = Trainer(config, dataset, folder, device=self.search.device, reporter=reporter)
        try:
            return trainer.fit(resume=True, test=False)
        except (ConfigError, DivergedError) as error:
            raise _BadSettingsError(error) from error

    def _tidy(self, variant: Variant, study: VariantStudy) -> None:
        """Keep the best run alone: a catalogue's features are in each."""
        best = study.best()
        kept = None if best is None else self.search.folder(variant, best.user_attrs["slot"])
        for folder in (self.search.runs / variant).glob("trial-*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _best(self, variant: Variant) -> FrozenTrial:
        best = self.studies[variant].best()
        if best is None:
            raise DvibError(f"{variant}: every trial failed; see the lines above")
        return best

    def _winner(self, variant: Variant, best: FrozenTrial) -> Winner:
        study = self.studies[variant]
        slot: int = best.user_attrs["slot"]
        folder = self.search.folder(variant, slot)
        test = study.test
        if test is None:
            config = with_settings(self.search.configs[variant], best.params)
            dataset, _ = self.data.of(config)
            # The run is over but for the test split; should its folder be gone, it is made again.
            test = Trainer(config, dataset, folder, device=self.search.device).fit(resume=True).metrics["test"]
            study.close(test)
        return Winner(
            variant, study.counts(), slot, best.params, value_of(best), best.user_attrs["epoch"], test, folder
        )


def variants_of(names: Sequence[str]) -> tuple[Variant, ...]:
    """Return the plain model and the variants to compare it with, each once.

    Raises:
        ConfigError: There is no such variant.
    """
    known: tuple[Variant, ...] = get_args(Variant)
    for name in names:
        if name not in known:
            raise ConfigError(f"--dvib: no variant {shown(name)}{nearest(name, known)}")
    return tuple(variant for variant in known if variant == "none" or variant in names)
