"""The training loop: epochs, early stopping, checkpoints, resuming."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from training.build import build_objective, load_tensors
from training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointInfo,
    DatasetInfo,
    load_checkpoint,
    save_checkpoint,
    save_dataset,
    versions,
)
from training.common.errors import CheckpointError, ConfigError
from training.common.folders import remove_folder, settle_retired, write_atomically
from training.config import RunConfig
from training.data.dataset import Dataset
from training.epoch import EpochRunner
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate_model
from training.reporting import Reporter, SilentReporter
from training.resume import DATA, LAST, LOG, ResumeState, check_run_folder, load_resume_state, save_resume_state
from training.stopping import EarlyStopping
from training.watch.alarms import Alarms

SAVE_SECONDS = 30.0
"""Least time between two saved states. A run resumed from any of them takes the same course."""

logger = logging.getLogger("dvib.training")


@dataclass
class Progress:
    """What of a run is not a tensor: saved and restored as a whole."""

    stopping: EarlyStopping
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one configuration into one run folder.

    ``out/best`` is the checkpoint of the best validated epoch, ``out/last`` the state to resume from, ``out/log.jsonl``
    one line per epoch, ``out/data`` the files that checkpoints share.

    Args:
        config: The run.
        dataset: Its data.
        out: The run's folder.
        device: Where to train.
        reporter: Shows progress.
        ks: Cut-offs of the validation metrics.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        out: Path,
        *,
        device: torch.device | None = None,
        reporter: Reporter | None = None,
        ks: tuple[int, ...] = DEFAULT_KS,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.out = out
        self.device = device or torch.device("cpu")
        self.reporter: Reporter = reporter or SilentReporter()
        monitored = int(config.training.monitor.split("@")[1])
        if monitored > dataset.n_items:
            raise ConfigError(
                f"training.monitor={config.training.monitor} exceeds the catalogue of {dataset.n_items} items; "
                "--set training.monitor to a smaller cut-off"
            )
        self.ks = tuple(sorted({*ks, monitored}))
        self.info = DatasetInfo.of(dataset)
        self.objective = build_objective(config, dataset).to(self.device)
        self.runner = EpochRunner(self.objective, config, dataset, self.device)
        self.valid = EvaluationSet.of(dataset, "valid", self.device)
        self.test = EvaluationSet.of(dataset, "test", self.device)
        self.alarms = Alarms(dataset, self.device)
        self.progress = Progress(EarlyStopping(config.training.patience, config.training.monitor_decimals))

    def fit(self, *, resume: bool = False, test: bool = True) -> CheckpointInfo:
        """Train until early stopping or the last epoch.

        Args:
            resume: Continue the run in ``out`` if there is one, else start it.
            test: Read the test split, at the end. Without it the run stays unfinished; resumed with it, it only reads
                the test split.

        Returns:
            The best checkpoint's description, with test metrics unless ``test`` is false.

        Raises:
            CheckpointError: The run in ``out`` has another configuration or other data, lacks the state to resume
                from, or ends before the epoch of its best checkpoint.
            DivergedError: The loss or its gradient became infinite or NaN. What earlier epochs left stays as it is.
        """
        check_run_folder(self.out)
        if resume:
            for name in (BEST, LAST):
                settle_retired(self.out / name)
        state = load_resume_state(self.out) if resume else None
        begun = (self.out / BEST).exists()
        if resume and begun and state is None:
            raise CheckpointError(
                f"{self.out} holds a checkpoint but no state to resume from ({LAST} is missing); "
                "remove that folder to train anew, or choose another"
            )
        if state is None or not begun:
            # A run that has not finished its first epoch holds nothing to go on from.
            self._start()
        else:
            self._restore(state)
        saved = time.monotonic()
        while self._may_go_on():
            self._epoch()
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save_state()
                saved = time.monotonic()
        best = load_checkpoint(self.out)
        if best.info.epoch != self.progress.stopping.best_epoch:
            # A kill can leave a checkpoint that is newer than the state, and this run has ended before that epoch.
            raise CheckpointError(
                f"{self.out}: the best checkpoint is of epoch {best.info.epoch}, which this run ends without; "
                f"go on with training.epochs={best.info.epoch} or more and the patience that it was started with"
            )
        if best.info.finished and len(best.info.history) == self.progress.epoch:
            return best.info
        self._save_state()
        return self._finish(best) if test else best.info

    def _may_go_on(self) -> bool:
        return not self.progress.stopping.stop and self.progress.epoch < self.config.training.epochs

    def _start(self) -> None:
        # An earlier run's state must not stand beside the new one's data. Its checkpoint stays until the first better
        # one takes its place.
        if (self.out / LAST).exists():
            remove_folder(self.out / LAST)
        save_dataset(self.dataset, self.out / DATA)
        self._write_log()
        self._save_state()

    def _epoch(self) -> None:
        progress = self.progress
        epoch = progress.epoch + 1
        self.reporter.epoch_started(epoch, self.runner.steps)
        started = time.perf_counter()
        self.objective.train()
        means = self.runner.run(epoch, self.reporter.step_done)
        trained = time.perf_counter()
        self.objective.eval()
        with self.runner.ranked_weights():
            seen: dict[str, float] = {}
            metrics = evaluate_model(
                self.objective.model,
                self.valid,
                self.dataset.n_items,
                self.ks,
                lambda lists: seen.update(self.alarms.ranked(lists)),
            )
            entry = {
                "epoch": float(epoch),
                "train_seconds": trained - started,
                "valid_seconds": time.perf_counter() - trained,
                **{f"loss/{name}": value for name, value in means.items()},
                **{f"valid/{name}": value for name, value in metrics.items()},
                **self.runner.noted,
                **seen,
            }
            warnings = self.alarms.judge(entry, progress.history)
            progress.epoch = epoch
            progress.history.append(entry)
            improved = progress.stopping.update(metrics[self.config.training.monitor], epoch)
            if improved:
                progress.valid = metrics
                self._save_best({"valid": metrics}, epoch)
        self._append_log(entry)
        self.reporter.epoch_done(entry, improved)
        for warning in warnings:
            self.reporter.warned(warning)

    def _own_tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.objective.state_dict().items() if not name.startswith("model.")}

    def _describe(self, metrics: dict[str, dict[str, float]], epoch: int, *, finished: bool = False) -> CheckpointInfo:
        return CheckpointInfo(
            config=self.config,
            dataset=self.info,
            epoch=epoch,
            finished=finished,
            metrics=metrics,
            history=self.progress.history,
            versions=versions(),
        )

    def _save_best(self, metrics: dict[str, dict[str, float]], epoch: int) -> None:
        save_checkpoint(
            self.out / BEST,
            self._describe(metrics, epoch),
            self.objective.model.state_dict(),
            self._own_tensors(),
            self.out / DATA,
        )

    def _finish(self, best: Checkpoint) -> CheckpointInfo:
        """Evaluate the best checkpoint on the test split, once, and write the result into it."""
        load_tensors(self.objective.model, best.model, best.folder)
        self.objective.eval()
        metrics = {
            "valid": self.progress.valid,
            "test": evaluate_model(self.objective.model, self.test, self.dataset.n_items, self.ks),
        }
        info = self._describe(metrics, best.info.epoch, finished=True)
        save_checkpoint(self.out / BEST, info, best.model, best.dvib, self.out / DATA)
        return info

    def _save_state(self) -> None:
        progress = self.progress
        document: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.info.fingerprint,
            "epoch": progress.epoch,
            "best": progress.stopping.best if progress.stopping.best_epoch else None,
            "best_epoch": progress.stopping.best_epoch,
            "waited": progress.stopping.waited,
            "valid": progress.valid,
            "history": progress.history,
            "scaler": None if self.runner.scaler is None else self.runner.scaler.state_dict(),
        }
        save_resume_state(self.out, document, self.objective.state_dict(), self.runner)

    def _restore(self, state: ResumeState) -> None:
        self._check_same(state.document)
        load_tensors(self.objective, state.tensors, self.out)
        state.restore_optimiser(self.runner)
        progress, document = self.progress, state.document
        progress.epoch = document["epoch"]
        progress.history, progress.valid = document["history"], document["valid"]
        if self.runner.scaler is not None and document.get("scaler"):
            self.runner.scaler.load_state_dict(document["scaler"])
        stopping = progress.stopping
        stopping.best = -math.inf if document["best"] is None else document["best"]
        stopping.best_epoch, stopping.waited = document["best_epoch"], document["waited"]
        self._write_log()

    def _check_same(self, document: dict[str, Any]) -> None:
        """Refuse to continue a run as another one. Only its length may change, and what is logged."""
        try:
            before, now = RunConfig.model_validate(document["config"]), self.config
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"{self.out}: the run's state does not fit this program; train again") from error
        for section in ("model_name", "preset", "dataset", "model", "dvib", "robust", "training", "data"):
            old, new = getattr(before, section), getattr(now, section)
            if section == "training":
                free = {"epochs": new.epochs, "patience": new.patience, "watch_every": new.watch_every}
                old = old.model_copy(update=free)
            if old != new:
                raise CheckpointError(
                    f"{self.out}: the run was started with another '{section}' ({_difference(old, new)}); "
                    "go on with the same settings, remove that folder, or choose another"
                )
        if document["fingerprint"] != self.info.fingerprint:
            raise CheckpointError(
                f"{self.out}: the data have changed since the run was started; remove that folder, or choose another"
            )

    def _write_log(self) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in self.progress.history)
        write_atomically(self.out / LOG, lines)

    def _append_log(self, entry: dict[str, float]) -> None:
        with (self.out / LOG).open("a", encoding="utf-8") as stream_:
            stream_.write(json.dumps(entry) + "\n")


def _difference(old: Any, new: Any) -> str:
    before = old.model_dump() if hasattr(old, "model_dump") else old
    after = new.model_dump() if hasattr(new, "model_dump") else new
    if isinstance(before, dict) and isinstance(after, dict):
        changed = [f"{key}: {before.get(key)} → {after.get(key)}" for key in after if before.get(key) != after.get(key)]
        return ", ".join(changed)
    return f"{before} → {after}"
