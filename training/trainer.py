"""The training loop: epochs, early stopping, checkpoints, resuming."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from training.common.errors import CheckpointError, ConfigError, DataError, DvibError
from training.common.folders import write_atomically
from training.config import RunConfig
from training.data.dataset import Dataset
from training.data.negatives import NegativeSampler
from training.dvib.objective import Objective, StepLoss
from training.evaluation import DEFAULT_KS, EvaluationSet, evaluate, vector_scorer
from training.models.base import Recommender
from training.randomness import stream
from training.resume import ResumeState, load_resume_state, save_resume_state

DATA = "data"
LOG = "log.jsonl"
SAVE_SECONDS = 30.0
"""Least time between two saved states. A run resumed from any of them takes the same course."""

logger = logging.getLogger("dvib.training")


class DivergedError(DvibError):
    """The loss is no longer a finite number."""


class Reporter(Protocol):
    """Shows progress; the trainer itself prints nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """An epoch with so many steps begins."""

    def step_done(self) -> None:
        """One step is over."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """An epoch is over; ``entry`` is its line in the log."""


class SilentReporter:
    """Shows nothing."""

    def epoch_started(self, epoch: int, steps: int) -> None:
        """Do nothing."""

    def step_done(self) -> None:
        """Do nothing."""

    def epoch_done(self, entry: dict[str, float], improved: bool) -> None:
        """Do nothing."""


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises:
        DvibError: There is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DvibError(f"no device '{name}'; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DvibError(f"no device '{name}' here: {torch.cuda.device_count()} CUDA devices found; use --device cpu")
    return device


@torch.no_grad()
def evaluate_model(model: Recommender, data: EvaluationSet, n_items: int, ks: tuple[int, ...]) -> dict[str, float]:
    """Evaluate a model on one split; every vector is computed once."""
    users, items = model.vectors()
    return evaluate(vector_scorer(users, items), data, n_items, ks)


@dataclass
class EarlyStopping:
    """Keeps the best value of the monitored metric and says when to stop.

    Attributes:
        patience: Evaluations in a row without an improvement after which to stop.
        decimals: Round before comparing; None compares exactly.
        best: Best value so far.
        best_epoch: Its epoch.
        waited: Evaluations since.
    """

    patience: int
    decimals: int | None = None
    best: float = -math.inf
    best_epoch: int = 0
    waited: int = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take in one evaluation; return whether it is the best so far."""
        if self.decimals is not None:
            value = round(value, self.decimals)
        if value > self.best:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether patience is used up."""
        return self.waited >= self.patience


class EpochRunner:
    """Runs the optimisation steps of one epoch; knows nothing of evaluation or files.

    Args:
        objective: On its device.
        config: Its configuration.
        dataset: Training interactions.
        device: Where to train.
    """

    def __init__(self, objective: Objective, config: RunConfig, dataset: Dataset, device: torch.device) -> None:
        self.objective = objective
        self.config = config
        self.device = device
        self._users = torch.from_numpy(dataset.train.users.copy()).to(device)
        self._items = torch.from_numpy(dataset.train.items.copy()).to(device)
        self._sampler = NegativeSampler(self._users, self._items, dataset.n_items)
        usable = self._sampler.usable
        if not bool(usable.all()):
            logger.warning("%d interactions of users who own every item are left out", int((~usable).sum()))
            self._users, self._items = self._users[usable], self._items[usable]
        if len(self._users) == 0:
            raise DataError(f"{dataset.name}: every user owns every training item, so nothing can be ranked below them")
        self.optimiser = torch.optim.Adam(
            [value for _, value in self.named_parameters()], lr=config.training.learning_rate, fused=True
        )

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return all parameters in a fixed order: the model's, then the objective's own."""
        own = self.objective.own_parameters()
        return [*self.objective.model.named_parameters(prefix="model"), *own.items()]

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self._users) / self.config.training.batch_size)

    def triples(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Shuffle the interactions, draw their negatives and yield them in batches.

        Args:
            epoch: From 1; determines the result together with the seed.

        Yields:
            Users, positives and negatives, int64 [B] each; the last batch may be shorter.
        """
        seed = self.config.training.seed
        order = torch.randperm(
            len(self._users), generator=stream(seed, "batches", epoch, self.device), device=self.device
        )
        users, positives = self._users[order], self._items[order]
        negatives = self._sampler.draw(users, stream(seed, "negatives", epoch, self.device))
        size = self.config.training.batch_size
        yield from zip(*(torch.split(part, size) for part in (users, positives, negatives)), strict=True)

    def steps_of(self, epoch: int) -> Iterator[tuple[float, StepLoss]]:
        """Make the optimisation steps of one epoch, one for each value taken.

        Yields:
            The batch's share of the epoch's interactions, and its loss.
        """
        noise = stream(self.config.training.seed, "noise", epoch, self.device)
        for users, positives, negatives in self.triples(epoch):
            result = self.objective.step(self.objective.batch(users, positives, negatives), noise)
            self.optimiser.zero_grad(set_to_none=True)
            result.total.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            yield len(users) / len(self._users), result

    def run(self, epoch: int, on_step: Callable[[], None] | None = None) -> dict[str, float]:
        """Make one pass over the training interactions.

        Args:
            epoch: From 1.
            on_step: Called after each step.

        Returns:
            Means over the epoch of the total loss and of every logged term.

        Raises:
            DivergedError: The loss became infinite or NaN.
        """
        sums: dict[str, Tensor] = {}
        for share, result in self.steps_of(epoch):
            for name, value in (("total", result.total.detach()), *result.terms.items()):
                sums[name] = sums[name] + share * value if name in sums else share * value
            if on_step is not None:
                on_step()
        means = {name: float(value) for name, value in sums.items()}
        if not math.isfinite(means["total"]):
            bad = [name for name, value in means.items() if not math.isfinite(value)]
            raise DivergedError(
                f"epoch {epoch}: the loss is not finite any more ({', '.join(bad)}); "
                "lower training.learning_rate or the weight of that term"
            )
        return means


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
        self.progress = Progress(EarlyStopping(config.training.patience, config.training.monitor_decimals))

    def fit(self, *, resume: bool = False) -> CheckpointInfo:
        """Train until early stopping or the last epoch.

        Args:
            resume: Continue the run in ``out`` if there is one, else start it.

        Returns:
            The best checkpoint's description, with test metrics.

        Raises:
            CheckpointError: The run in ``out`` has another configuration or other data.
            DivergedError: The loss became infinite or NaN.
        """
        state = load_resume_state(self.out) if resume else None
        if state is None:
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
        if best.info.finished and len(best.info.history) == self.progress.epoch:
            return best.info
        self._save_state()
        return self._finish(best)

    def _may_go_on(self) -> bool:
        return not self.progress.stopping.stop and self.progress.epoch < self.config.training.epochs

    def _start(self) -> None:
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
        metrics = evaluate_model(self.objective.model, self.valid, self.dataset.n_items, self.ks)
        entry = {
            "epoch": float(epoch),
            "train_seconds": trained - started,
            "valid_seconds": time.perf_counter() - trained,
            **{f"loss/{name}": value for name, value in means.items()},
            **{f"valid/{name}": value for name, value in metrics.items()},
        }
        progress.epoch = epoch
        progress.history.append(entry)
        improved = progress.stopping.update(metrics[self.config.training.monitor], epoch)
        if improved:
            progress.valid = metrics
            self._save_best({"valid": metrics}, epoch)
        self._append_log(entry)
        self.reporter.epoch_done(entry, improved)

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
        test = EvaluationSet.of(self.dataset, "test", self.device)
        metrics = {
            "valid": self.progress.valid,
            "test": evaluate_model(self.objective.model, test, self.dataset.n_items, self.ks),
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
        }
        save_resume_state(self.out, document, self.objective.state_dict(), self.runner)

    def _restore(self, state: ResumeState) -> None:
        self._check_same(state.document)
        load_tensors(self.objective, state.tensors, self.out)
        state.restore_optimiser(self.runner)
        progress, document = self.progress, state.document
        progress.epoch = document["epoch"]
        progress.history, progress.valid = document["history"], document["valid"]
        stopping = progress.stopping
        stopping.best = -math.inf if document["best"] is None else document["best"]
        stopping.best_epoch, stopping.waited = document["best_epoch"], document["waited"]
        self._write_log()

    def _check_same(self, document: dict[str, Any]) -> None:
        """Refuse to continue a run as another one. Only its length may change."""
        try:
            before, now = RunConfig.model_validate(document["config"]), self.config
        except (KeyError, ValidationError) as error:
            raise CheckpointError(f"{self.out}: the run's state does not fit this program; train again") from error
        for section in ("model_name", "preset", "dataset", "model", "dvib", "training", "data"):
            old, new = getattr(before, section), getattr(now, section)
            if section == "training":
                free = {"epochs": new.epochs, "patience": new.patience}
                old = old.model_copy(update=free)
            if old != new:
                raise CheckpointError(
                    f"{self.out}: the run was started with another '{section}' ({_difference(old, new)}); "
                    "resume it with the same settings, or choose another --out"
                )
        if document["fingerprint"] != self.info.fingerprint:
            raise CheckpointError(f"{self.out}: the data have changed since the run was started; choose another --out")

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
