"""A search for settings that is fair by construction: the plain model and DVIB get the same number of trials.

Every variant has a study of its own, with the same sampler's seed, the same ranges for the keys that they share and
the same budget; trials take turns. A trial is judged on the validation split alone. The test split is read when all
trials are over, once, by each variant's winner; after that no trial may follow.

The runs are kept in ``FILE.runs/VARIANT``: each variant's best so far, and the one that is being trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from optuna.trial import Trial

from training.common.choices import Variant
from training.common.errors import ConfigError, DvibError, nearest, shown
from training.config import RunConfig
from training.reporting import SilentReporter
from training.runs.config_file import with_settings
from training.runs.data import DataSource
from training.runs.lock import exclusive
from training.runs.space import Axis
from training.runs.study import Trials, VariantStudy
from training.trainer import Trainer


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
    """Try both ends of every range and every choice, before the first trial.

    Raises:
        ConfigError: A configuration would not take a value, or variants are judged by different metrics.
    """
    monitors = {config.training.monitor for config in search.configs.values()}
    if len(monitors) > 1:
        raise ConfigError(f"the variants are judged by different metrics ({', '.join(monitors)}); --set the same")
    for variant, axes in search.spaces.items():
        for key, axis in axes.items():
            for value in axis.probes:
                try:
                    with_settings(search.configs[variant], {key: value})
                except ConfigError as error:
                    raise ConfigError(f"the search space of {key}: {error}") from error


def tune(search: Search, watcher: TuneWatcher) -> list[Winner]:
    """Make the trials that are missing, choose on validation, and read the test split once for each winner.

    Args:
        search: What is searched.
        watcher: Is told what happens.

    Returns:
        Each variant's winner, in the search's order.

    Raises:
        ConfigError: The file's studies were begun otherwise, are closed, or hold more trials than are asked for.
        DvibError: Every trial of a variant failed.
    """
    check_search(search)
    with exclusive(search.runs):
        return _Tuning(search, watcher).run()


class _Tuning:
    def __init__(self, search: Search, watcher: TuneWatcher) -> None:
        self.search, self.watcher = search, watcher
        self.data = DataSource(search.data_dir)
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
        # Nothing is read from the test split before every variant's winner is known.
        return [self._winner(variant) for variant in self.studies]

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
            config = with_settings(self.search.configs[variant], settings)
            dataset, _ = self.data.of(config)
            info = Trainer(config, dataset, folder, device=self.search.device, reporter=reporter).fit(
                resume=True, test=False
            )
        except _Pruned:
            study.prune(trial)
            result = "pruned"
        except (DvibError, RuntimeError, MemoryError) as error:
            # One setting that diverges must not end the search; it counts as a trial.
            result = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            study.fail(trial, result)
        else:
            value = info.metrics["valid"][self.search.monitor]
            study.complete(trial, value, {"epoch": info.epoch})
            result = f"validation {self.search.monitor} {value:.4f}, epoch {info.epoch}"
        self._tidy(variant, study)
        self.watcher.end(variant, slot, result, known=False)

    def _tidy(self, variant: Variant, study: VariantStudy) -> None:
        """Keep the best run alone: a catalogue's features are in each."""
        best = study.best()
        kept = None if best is None else self.search.folder(variant, best.user_attrs["slot"])
        for folder in (self.search.runs / variant).glob("trial-*"):
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _winner(self, variant: Variant) -> Winner:
        study = self.studies[variant]
        best = study.best()
        if best is None or best.value is None:
            raise DvibError(f"{variant}: every trial failed; see the lines above")
        slot: int = best.user_attrs["slot"]
        folder = self.search.folder(variant, slot)
        test = study.test
        if test is None:
            config = with_settings(self.search.configs[variant], best.params)
            dataset, _ = self.data.of(config)
            # The run is over but for the test split; should its folder be gone, it is made again.
            test = Trainer(config, dataset, folder, device=self.search.device).fit(resume=True).metrics["test"]
            study.close(test)
        return Winner(variant, study.counts(), slot, best.params, best.value, best.user_attrs["epoch"], test, folder)


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
