"""Ranking quality of models, plain and with DVIB, beside a popularity ranking and item-kNN, over several seeds.

Settings can be tuned first: on the validation split only, with the same number of trials for every variant. The test
split decides nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.grids import trials
from benchmarks.item_knn import choose_item_knn
from benchmarks.ledger import Ledger, Record
from training.common.choices import Preset, Variant
from training.common.errors import ConfigError, DvibError, nearest
from training.config import RunConfig, build_config
from training.data.dataset import SPLITS, Dataset
from training.data.load import load_dataset
from training.data.options import DataOptions
from training.evaluation import DEFAULT_KS, METRICS, EvaluationSet, evaluate, popularity_scorer
from training.models import MODELS
from training.reporting import Reporter, SilentReporter
from training.trainer import Trainer

VARIANTS: tuple[Variant, ...] = ("none", "constant", "adaptive")
TUNING_SEED = 2024
KNOWN_METRICS = tuple(f"{name}@{k}" for k in DEFAULT_KS for name in METRICS)


@dataclass(frozen=True)
class Combination:
    """One line of the comparison.

    Attributes:
        model: A key of ``training.models.MODELS``.
        variant: Without DVIB, or which.
        settings: ``section.key=value``, beyond the preset's.
    """

    model: str
    variant: Variant
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return self.model if self.variant == "none" else f"{self.model} + DVIB {self.variant}"


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Attributes:
        dataset: Name of the data set.
        data_dir: Where it is.
        preset: Where settings come from.
        combinations: The lines, in order.
        seeds: One run of each line with each.
        device: Where to train.
    """

    dataset: str
    data_dir: Path | None
    preset: Preset
    combinations: tuple[Combination, ...]
    seeds: tuple[int, ...] = (0,)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def config(self, combination: Combination, *more: str) -> RunConfig:
        """Return the configuration of a line, with more settings, which win.

        Raises:
            ConfigError: An unknown model or key, or a value out of range.
        """
        return build_config(
            model_name=combination.model,
            dataset=self.dataset,
            variant=combination.variant,
            preset=self.preset,
            overrides=[*combination.settings, *more],
        )

    def check(self) -> None:
        """Find mistakes before the first run.

        Raises:
            DvibError: A configuration is wrong, or the data set cannot be read.
        """
        for combination in self.combinations:
            self.config(combination)
        load_dataset(self.dataset, self.data_dir, self.config(self.combinations[0]).data)


class Watcher(Protocol):
    """Is told what happens."""

    def begin(self, what: str, config: RunConfig) -> Reporter:
        """A run begins; its epochs are told to what this returns."""

    def end(self, what: str, record: Record, *, known: bool) -> None:
        """A run is over, or ``known`` from an earlier time. Its record has ``error`` where it failed."""


class SilentWatcher:
    """Shows nothing."""

    def begin(self, what: str, config: RunConfig) -> Reporter:  # noqa: ARG002
        """Return a reporter that shows nothing."""
        return SilentReporter()

    def end(self, what: str, record: Record, *, known: bool) -> None:
        """Do nothing."""


def chosen_models(names: Sequence[str]) -> tuple[str, ...]:
    """Return the models of these names, each once; ``all`` stands for every one.

    Raises:
        ConfigError: There is no model of a name.
    """
    for name in names:
        if name != "all" and name not in MODELS:
            raise ConfigError(f"no model '{name}'{nearest(name, [*MODELS, 'all'])}")
    return tuple(MODELS) if "all" in names else tuple(dict.fromkeys(names))


def chosen_metrics(text: str) -> tuple[str, ...]:
    """Return the metrics of a list like ``recall@20,ndcg@20``.

    Raises:
        ConfigError: A metric that is not computed.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if name not in KNOWN_METRICS:
            raise ConfigError(f"--metrics: no metric '{name}'{nearest(name, KNOWN_METRICS)}")
    return names


class Comparison:
    """Makes the runs of a study, one after another.

    Args:
        study: What to run.
        ledger: Where every run is kept; those that it holds already are not made again.
        watcher: Is told what happens.

    Raises:
        DvibError: An unknown model or key, a value out of range, or no such data set.
    """

    def __init__(self, study: Study, ledger: Ledger, watcher: Watcher | None = None) -> None:
        study.check()
        self.study = study
        self._ledger = ledger
        self._watcher: Watcher = watcher or SilentWatcher()
        self._data: dict[str, tuple[Dataset, str]] = {}

    def tune(self) -> dict[str, dict[str, Any]]:
        """Try every setting of the grids once.

        Returns:
            A line's label → ``{"best": settings, "trials": [{"settings", "valid", ...}]}``. Trials that failed are not
            among them.

        Raises:
            DvibError: Every trial of a line failed.
        """
        found: dict[str, dict[str, Any]] = {}
        for combination in self.study.combinations:
            done = []
            for settings in trials(combination.model, combination.variant):
                config = self.study.config(combination, *settings, f"training.seed={TUNING_SEED}")
                record = self._run(f"trial {combination.label}: {' '.join(settings)}", combination, config)
                if "error" not in record:
                    done.append({"settings": list(settings), "valid": record["valid"][config.training.monitor]})
            if not done:
                raise DvibError(f"{combination.label}: every trial of the tuning failed; see the lines above")
            best = max(done, key=lambda entry: float(entry["valid"]))
            found[combination.label] = {"best": best["settings"], "trials": done}
        return found

    def run(self, tuned: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, list[Record]]:
        """Train every line with every seed.

        Args:
            tuned: What ``tune`` has chosen, if anything: a line's ``best`` settings are put on its own.

        Returns:
            A line's label → its runs, in the order of the seeds; those that failed have ``error`` instead of metrics.
        """
        result: dict[str, list[Record]] = {}
        for combination in self.study.combinations:
            label = combination.label
            settings = tuned[label]["best"] if tuned is not None else ()
            result[label] = [
                self._run(
                    f"{label}, seed {seed}",
                    combination,
                    self.study.config(combination, *settings, f"training.seed={seed}"),
                )
                for seed in self.study.seeds
            ]
        return result

    def baselines(self) -> dict[str, dict[str, float]]:
        """Evaluate what needs no training: label → metric → value on the test split.

        Raises:
            ConfigError: The lines of the study are about different interactions.
        """
        interactions = set()
        for combination in self.study.combinations:
            dataset, _ = self._dataset(self.study.config(combination).data)
            interactions.add(_interactions(dataset))
        if len(interactions) > 1:
            raise ConfigError(
                f"the presets give these models different interactions of {dataset.name}; compare them one by one, "
                "or --set data.… the same for all"
            )
        key = {"baselines_of": interactions.pop()}
        record = self._ledger.find(key)
        if record is None:
            record = {**key, "rows": _untrained(dataset)}
            self._ledger.add(record)
        rows: dict[str, dict[str, float]] = record["rows"]
        return rows

    def _dataset(self, options: DataOptions) -> tuple[Dataset, str]:
        key = options.model_dump_json()
        if key not in self._data:
            self._data.clear()  # features are large; lines with the same options mostly follow each other
            dataset = load_dataset(self.study.dataset, self.study.data_dir, options)
            self._data[key] = dataset, dataset.fingerprint()
        return self._data[key]

    def _run(self, what: str, combination: Combination, config: RunConfig) -> Record:
        dataset, fingerprint = self._dataset(config.data)
        key = {"config": config.model_dump(mode="json"), "fingerprint": fingerprint}
        record = self._ledger.find(key)
        if record is not None:
            self._watcher.end(what, record, known=True)
            return record
        reporter = self._watcher.begin(what, config)
        record = {"model": combination.model, "variant": combination.variant, "seed": config.training.seed}
        try:
            record |= fit(config, dataset, self.study.device, reporter)
        except (DvibError, RuntimeError, MemoryError) as error:
            # The other runs go on: one that diverges at night must not cost the rest.
            record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            self._ledger.add({**record, **key, "device": str(self.study.device)})
        self._watcher.end(what, record, known=False)
        return record


def fit(config: RunConfig, dataset: Dataset, device: torch.device, reporter: Reporter) -> Record:
    """Train one configuration, and keep nothing but its figures.

    Returns:
        Metrics of ``valid`` and ``test`` at the best epoch, that epoch, the number of epochs, and seconds of it all.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dvib-quality-") as folder:
        info = Trainer(config, dataset, Path(folder) / "run", device=device, reporter=reporter).fit()
    return {
        "epoch": info.epoch,
        "epochs": len(info.history),
        "seconds": time.perf_counter() - started,
        "valid": info.metrics["valid"],
        "test": info.metrics["test"],
    }


def _interactions(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        part = dataset.splits[split]
        digest.update(len(part).to_bytes(8, "little") + part.users.tobytes() + part.items.tobytes())
    return digest.hexdigest()


def _untrained(dataset: Dataset) -> dict[str, dict[str, float]]:
    popular = evaluate(popularity_scorer(dataset), EvaluationSet.of(dataset, "test"), dataset.n_items, DEFAULT_KS)
    cutoffs = tuple(k for k in DEFAULT_KS if k <= dataset.n_items)
    item_knn = choose_item_knn(dataset, cutoffs, "recall@20" if 20 in cutoffs else f"recall@{cutoffs[-1]}")
    return {"popularity": popular, f"item-kNN, k {item_knn.k}": item_knn.test}
