"""One variant's study: its trials in SQLite, drawn so that a search that was killed goes on as if it had not been.

A slot is one of the trials that are asked for. The sampler's generator is set anew for each slot, from the search's
seed and the slot's number, so the draws of a slot are a function of those and of the trials before it. Two variants
with the same seed draw the same values for the keys that they share as long as the sampler draws at random (its first
ten trials).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from training.common.errors import ConfigError, DvibError
from training.runs.space import Axis

_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Trials:
    """How many trials a study has made.

    Attributes:
        complete: Trained to the end.
        pruned: Stopped early, as worse than others.
        failed: Diverged, or drew settings that do not go together.
    """

    complete: int
    pruned: int
    failed: int

    @property
    def total(self) -> int:
        """All of them: what the budget counts."""
        return self.complete + self.pruned + self.failed


class VariantStudy:
    """The trials of one variant.

    Args:
        file: The SQLite file.
        name: The study's name in it.
        definition: What the trials depend on; a study that was begun with another is refused.
        axes: Key → what may be drawn.
        seed: Of the sampler.
        prune: Stop trials that are worse than the median of the others at the same epoch.

    Raises:
        ConfigError: The file is no study, or the study was begun with another definition.
    """

    def __init__(
        self, file: Path, name: str, definition: Mapping[str, Any], axes: Mapping[str, Axis], *, seed: int, prune: bool
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self._seed = axes, seed
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3) if prune else None
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{file}",
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=pruner or optuna.pruners.NopPruner(),
            )
        except Exception as error:
            # optuna and SQLAlchemy have no common base for what a foreign file makes them raise.
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"{file} cannot be used as a study: {reason}; choose another --study") from error
        text = json.dumps(definition, sort_keys=True)
        known = self._study.user_attrs.get("definition")
        if known is None:
            self._study.set_user_attr("definition", text)
        elif known != text:
            raise ConfigError(
                f"{file}: the study was begun with {_difference(json.loads(known), json.loads(text))}; "
                "go on with the same, or choose another --study"
            )

    def settle(self) -> int:
        """Mark what a killed process left running as failed; its slots are drawn again. Returns how many there were."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        for trial in running:
            self._study.tell(trial.number, state=TrialState.FAIL)
        return len(running)

    def _slots(self) -> dict[int, FrozenTrial]:
        """Return slot → its trial that is over; one that was killed has no slot."""
        over = self._study.get_trials(deepcopy=False, states=_OVER)
        return {
            trial.user_attrs["slot"]: trial
            for trial in over
            if trial.state is not TrialState.FAIL or "error" in trial.user_attrs
        }

    def known(self, slot: int) -> FrozenTrial | None:
        """Return the trial of a slot if it is over."""
        return self._slots().get(slot)

    def ask(self, slot: int) -> tuple[Trial, dict[str, Any]]:
        """Begin a slot's trial; return it and key → value."""
        seed = int(np.random.SeedSequence([self._seed, slot]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=False)
        trial = self._study.ask({key: distribution(axis) for key, axis in self._axes.items()})
        trial.set_user_attr("slot", slot)
        return trial, trial.params

    def complete(self, trial: Trial, value: float, facts: Mapping[str, Any]) -> None:
        """Record what a trial reached."""
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self._study.tell(trial, value)

    def fail(self, trial: Trial, error: str) -> None:
        """Record a trial whose settings cannot be trained: it counts."""
        trial.set_user_attr("error", error)
        self._study.tell(trial, state=TrialState.FAIL)

    def prune(self, trial: Trial) -> None:
        """Record a trial that was stopped: it counts."""
        self._study.tell(trial, state=TrialState.PRUNED)

    def counts(self) -> Trials:
        """Count the trials that are over, those that were killed left out."""
        states = [trial.state for trial in self._slots().values()]
        return Trials(*(states.count(state) for state in _OVER))

    def best(self) -> FrozenTrial | None:
        """Return the complete trial with the highest value, the earliest slot of several; None if there is none."""
        complete = [trial for trial in self._slots().values() if trial.state is TrialState.COMPLETE]
        return max(complete, key=lambda trial: (value_of(trial), -trial.user_attrs["slot"]), default=None)

    @property
    def test(self) -> dict[str, float] | None:
        """The winner's test metrics, once they have been computed: no trial may follow."""
        found: dict[str, float] | None = self._study.user_attrs.get("test")
        return found

    def close(self, test: Mapping[str, float]) -> None:
        """Keep the winner's test metrics.

        Raises:
            DvibError: There are some already.
        """
        if self.test is not None:
            raise DvibError(f"{self._study.study_name}: the test metrics were computed before")
        self._study.set_user_attr("test", dict(test))


def value_of(trial: FrozenTrial) -> float:
    """Return what a complete trial reached.

    Raises:
        DvibError: It says nothing.
    """
    if trial.value is None:
        raise DvibError(f"trial {trial.number} is complete without a value; the study's file is damaged")
    return trial.value


def distribution(axis: Axis) -> BaseDistribution:
    """Return optuna's form of an axis."""
    if axis.choices is not None:
        return CategoricalDistribution(axis.choices)
    low, high = axis.low, axis.high
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=axis.log)
    return FloatDistribution(float(low or 0.0), float(high or 0.0), log=axis.log)


def _difference(old: Any, new: Any, place: str = "") -> str:
    """Say the first place in which two documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    return f"another {place} ({json.dumps(old)} → {json.dumps(new)})"
