"""Finished runs side by side: those that differ only in the seed are one line, compared user by user with a baseline.

What is random about a result is two things. Seeds: the mean and standard deviation over a line's runs. Users: each
user's metric is averaged over the line's seeds, and the paired test asks whether the difference from the baseline is
more than the chance of having met these users. It does not ask about other seeds: look at the deviations for that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.build import load_model
from training.checkpoint import find_checkpoint, load_checkpoint
from training.common.errors import ConfigError, nearest
from training.data.dataset import SPLITS, Dataset
from training.evaluation import METRICS, EvaluationSet, evaluate_users, vector_scorer
from training.runs.found import Run, grouped, labels_of
from training.runs.paired import CONFIDENCE, Paired, paired

DEFAULT_METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
JudgedSplit = Literal["valid", "test"]
_METRIC = re.compile(rf"({'|'.join(METRICS)})@([1-9]\d{{0,8}})")


@dataclass(frozen=True)
class Line:
    """Runs of the same settings and data that differ only in the seed.

    Attributes:
        label: For people; no two lines share one.
        runs: By seed.
        per_user: Metric → float64 [seeds, users].
        versus: Metric → comparison with the baseline; none for a baseline itself.
        baseline: Label of the line that it is compared with; None where there is none.
        base_means: Metric → the baseline's mean.
    """

    label: str
    runs: tuple[Run, ...]
    per_user: Mapping[str, NDArray[np.float64]]
    versus: Mapping[str, Paired]
    baseline: str | None = None
    base_means: Mapping[str, float] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.info.config.training.seed for run in self.runs]

    def mean(self, metric: str) -> float:
        """Mean over seeds of the mean over users."""
        return float(self.per_user[metric].mean())

    def deviation(self, metric: str) -> float | None:
        """Sample standard deviation over seeds of the mean over users; None for a single seed."""
        of_seeds = self.per_user[metric].mean(axis=1)
        return float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Lines side by side.

    Attributes:
        dataset: Name of the data set.
        split: What was predicted.
        metrics: In the order of the columns.
        users: Number of users.
        lines: In the order given.
    """

    dataset: str
    split: JudgedSplit
    metrics: tuple[str, ...]
    users: int
    lines: tuple[Line, ...]


def chosen_metrics(text: str) -> tuple[str, ...]:
    """Return the metrics of a list like ``recall@20,ndcg@20``, each once.

    Raises:
        ConfigError: A metric that is not computed.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
    for name in names:
        if not _METRIC.fullmatch(name):
            known = [f"{metric}@{k}" for metric in METRICS for k in (5, 10, 20, 50)]
            raise ConfigError(f"--metrics: no metric '{name}'{nearest(name, known)}")
    return names


def compare(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    split: JudgedSplit = "test",
    confidence: float = CONFIDENCE,
    device: torch.device | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> Comparison:
    """Rank a split with every run, and compare the lines they make.

    Args:
        runs: Finished runs on the same interactions.
        baseline: A line's label, or the folder of one of its runs, for all other lines; by default each line is
            compared with the first of its own model that has neither DVIB nor another robust training.
        metrics: Like ``recall@20``.
        split: What to predict.
        confidence: Of the effects' intervals.
        device: Where to rank; the CPU by default.
        on_run: Called before each run is ranked.

    Raises:
        CheckpointError: A checkpoint is damaged.
        ConfigError: The same run twice, other interactions, no such baseline, or a cut-off beyond the catalogue.
    """
    groups = grouped(runs)
    labels = labels_of(groups)
    bases = _baselines(groups, labels, baseline)
    interactions: set[str] = set()
    values: list[dict[str, NDArray[np.float64]]] = []
    for group in groups:
        of_seeds: list[dict[str, NDArray[np.float64]]] = []
        for run in group:
            if on_run is not None:
                on_run(run)
            of_run, identity = _per_user(run, metrics, split, device or torch.device("cpu"))
            interactions.add(identity)
            if len(interactions) > 1:
                raise ConfigError(
                    f"{run.folder}: this run's interactions are others than those of {runs[0].folder}, so users cannot "
                    "be paired; compare runs of the same data and split"
                )
            of_seeds.append(of_run)
        values.append({metric: np.stack([of_run[metric] for of_run in of_seeds]) for metric in metrics})
    lines = []
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        base = bases[number]
        if base is None:
            lines.append(Line(label, tuple(group), values[number], {}))
            continue
        of_base = values[base]
        versus = {
            metric: paired(values[number][metric].mean(axis=0), of_base[metric].mean(axis=0), confidence)
            for metric in metrics
        }
        means = {metric: float(of_base[metric].mean()) for metric in metrics}
        lines.append(Line(label, tuple(group), values[number], versus, labels[base], means))
    users = values[0][metrics[0]].shape[1]
    return Comparison(runs[0].info.dataset.name, split, tuple(metrics), users, tuple(lines))


def _per_user(
    run: Run, metrics: Sequence[str], split: JudgedSplit, device: torch.device
) -> tuple[dict[str, NDArray[np.float64]], str]:
    checkpoint = load_checkpoint(run.folder)
    data = checkpoint.dataset
    ks = sorted({int(metric.partition("@")[2]) for metric in metrics})
    if ks[-1] > data.n_items:
        raise ConfigError(f"cut-off {ks[-1]} exceeds the catalogue of {data.n_items} items of {run.folder}")
    model = load_model(checkpoint).to(device)
    with torch.no_grad():
        users, items = model.vectors()
        found = evaluate_users(vector_scorer(users, items), EvaluationSet.of(data, split, device), data.n_items, ks)
    return {metric: found[metric].cpu().numpy() for metric in metrics}, interactions_of(data)


def interactions_of(dataset: Dataset) -> str:
    """Return a digest of who met what, whatever the features are."""
    digest = hashlib.sha256(f"{dataset.n_users} {dataset.n_items}".encode())
    for split in SPLITS:
        part = dataset.splits[split]
        digest.update(len(part).to_bytes(8, "little") + part.users.tobytes() + part.items.tobytes())
    return digest.hexdigest()


def _baselines(groups: Sequence[Sequence[Run]], labels: Sequence[str], wanted: str | None) -> list[int | None]:
    """Return for each line the number of the one that it is compared with, if any."""
    if wanted is not None:
        chosen = _number(groups, labels, wanted)
        return [None if number == chosen else chosen for number in range(len(groups))]
    plain: dict[str, int] = {}
    for number, group in enumerate(groups):
        config = group[0].info.config
        if config.dvib.variant == "none" and not (config.robust.amr or config.robust.mg):
            plain.setdefault(config.model_name, number)
    bases = [plain.get(group[0].info.config.model_name) for group in groups]
    return [None if base == number else base for number, base in enumerate(bases)]


def _number(groups: Sequence[Sequence[Run]], labels: Sequence[str], wanted: str) -> int:
    if wanted in labels:
        return labels.index(wanted)
    place = find_checkpoint(Path(wanted)).resolve()
    for number, group in enumerate(groups):
        if any(run.folder.resolve() == place for run in group):
            return number
    raise ConfigError(f"no line '{wanted}' to compare with{nearest(wanted, labels)}")
