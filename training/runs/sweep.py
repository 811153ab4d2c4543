"""Several runs from one file: what each is, which are there already, and making those that are missing.

The file has ``base`` (what all runs share) and ``runs`` (name → what is different about it):

    base: {dataset: tiktok, seeds: [0, 1, 2], set: {training.epochs: 50}}
    runs:
      plain: {model: vbpr}
      dvib_a: {model: vbpr, dvib: adaptive, set: {dvib.gamma_d: 0.5}}
      noisy: {model: vbpr, transforms: [noise:0.05]}
    compare: {baseline: plain, metrics: [recall@20, ndcg@20]}
"""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from training.checkpoint import BEST, INFO, CheckpointInfo
from training.common.choices import Preset, Variant
from training.common.errors import CheckpointError, ConfigError, DvibError, nearest, shown
from training.config import RunConfig, build_config
from training.data.fetch import DEFAULT_DATASET
from training.reporting import Reporter
from training.runs.compare import DEFAULT_METRICS, chosen_metrics
from training.runs.config_file import read_document, sectioned
from training.runs.continued import differing_key, is_whole
from training.runs.data import DataSource
from training.runs.found import Run, flat, read_checkpoint_info
from training.trainer import Trainer

Plan = TypeVar("Plan", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
_SAME = ("dataset", "data.min_rating", "data.k_core", "data.split", "data.split_seed")
"""Keys that decide who met what, and which of it is predicted: all that is compared shares them."""


class RunPlan(BaseModel):
    """One line of a sweep: a run for each seed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field("vbpr", description="the recommender")
    dvib: Variant = Field("none", description="the plain model, DVIB_c or DVIB_a")
    preset: Preset = Field("tuned", description="where settings begin")
    dataset: str = Field(DEFAULT_DATASET, description="name of the data set")
    seeds: list[int] = Field([999], min_length=1, description="one run with each")
    set: dict[str, Any] = Field({}, description="dotted key → value")
    transforms: list[str] = Field([], description="what is done to the data, as --transform says it")

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed is there twice in {seeds}; keep one")
        return seeds


class _Comparing(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    baseline: str | None = Field(
        None, description="the run that all are tested against; the plain one of their model by default"
    )
    metrics: list[str] = Field(list(DEFAULT_METRICS), min_length=1, description="columns of the table")


@dataclass(frozen=True)
class Planned:
    """One run that a sweep asks for.

    Attributes:
        name: Its line.
        config: Everything that determines it.
        folder: Where it is, or will be.
    """

    name: str
    config: RunConfig
    folder: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}, seed {self.config.training.seed}"


@dataclass(frozen=True)
class Sweep:
    """What a file asks for.

    Attributes:
        planned: Its runs, line by line, seed by seed.
        baseline: Line to compare with; None leaves it to ``compare``.
        metrics: Columns of the comparison.
    """

    planned: tuple[Planned, ...]
    baseline: str | None
    metrics: tuple[str, ...]


def read_sweep(path: Path, out: Path) -> Sweep:
    """Read a sweep's file; every mistake that shows without the data is found here, the others in ``run_sweep``.

    Args:
        path: YAML or JSON.
        out: The sweep's folder; a run's is ``OUT/NAME/seed-N``.

    Raises:
        ConfigError: The file, an unknown key or name (with the nearest), a value out of range, or runs that could not
            be compared.
    """
    document = read_document(path)
    for key in document:
        if key not in {"base", "runs", "compare"}:
            raise ConfigError(f"{path}: unknown key {shown(key)}{nearest(key, ['base', 'runs', 'compare'])}")
    base, runs = _mapping(document.get("base"), f"{path}: base"), _mapping(document.get("runs"), f"{path}: runs")
    if not runs:
        raise ConfigError(f"{path}: runs: at least one run is wanted, for example runs: {{plain: {{model: vbpr}}}}")
    _unambiguous(_validated(RunPlan, base, f"{path}: base"), f"{path}: base")
    planned: list[Planned] = []
    for name, own in runs.items():
        place = f"{path}: runs.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: runs: a name of letters, digits and ._+- is wanted, got {shown(name)}")
        mine = _mapping(own, place)
        merged = {**base, **mine, "set": {**_mapping(base.get("set"), place), **_mapping(mine.get("set"), place)}}
        plan = _unambiguous(_validated(RunPlan, merged, place), place)
        planned += [Planned(name, _config(plan, seed, place), out / name / f"seed-{seed}") for seed in plan.seeds]
    settings = [flat(run.config) for run in planned]
    for key in _SAME:
        values = list(dict.fromkeys(of_run[key] for of_run in settings))
        if len(values) > 1:
            said = ", ".join(value if isinstance(value, str) else json.dumps(value) for value in values)
            raise ConfigError(f"{path}: runs: they are compared, so one {key} is wanted, got {said}")
    comparing = _validated(_Comparing, _mapping(document.get("compare"), f"{path}: compare"), f"{path}: compare")
    if comparing.baseline is not None and comparing.baseline not in runs:
        raise ConfigError(
            f"{path}: compare.baseline: no run {shown(comparing.baseline)}{nearest(comparing.baseline, runs)}"
        )
    try:
        metrics = chosen_metrics(",".join(comparing.metrics))
    except ConfigError as error:
        raise ConfigError(f"{path}: compare.metrics: {str(error).removeprefix('--metrics: ')}") from error
    return Sweep(tuple(planned), comparing.baseline, metrics)


def _mapping(value: object, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ConfigError(f"{place}: a mapping of names is wanted, got {shown(str(value))}")


def _validated(schema: type[Plan], values: dict[str, Any], place: str) -> Plan:
    for key in values:
        if key not in schema.model_fields:
            raise ConfigError(f"{place}: unknown key {shown(key)}{nearest(key, schema.model_fields)}")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{place}.{where}: {first['msg']}, got {shown(str(first['input']))}") from error


def _unambiguous(plan: RunPlan, place: str) -> RunPlan:
    """Refuse what is said in two ways, of which one would be ignored without a word."""
    if "training.seed" in plan.set:
        raise ConfigError(f"{place}.set: training.seed is not set here; use seeds: [{plan.set['training.seed']}]")
    if "dvib.variant" in plan.set:
        raise ConfigError(f"{place}.set: dvib.variant is not set here; use dvib: {plan.set['dvib.variant']}")
    if plan.transforms and "data.transforms" in plan.set:
        raise ConfigError(f"{place}.set: data.transforms and transforms say the same; keep one")
    return plan


def _config(plan: RunPlan, seed: int, place: str) -> RunConfig:
    said = {**plan.set, "training.seed": seed}
    if plan.transforms:
        said["data.transforms"] = plan.transforms
    try:
        return build_config(
            model_name=plan.model,
            dataset=plan.dataset,
            variant=plan.dvib,
            preset=plan.preset,
            settings=sectioned(said, plan.model),
        )
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


class Watcher(Protocol):
    """Is told what happens."""

    def begin(self, number: int, planned: Planned) -> AbstractContextManager[Reporter]:
        """A run begins, or goes on; its epochs are told to what this yields."""

    def end(self, number: int, planned: Planned, info: CheckpointInfo | None, *, known: bool, error: str) -> None:
        """A run is over, or was ``known`` to be, or failed with an ``error``."""


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
        runs: Those that finished, in the file's order.
        failed: Label → why.
    """

    runs: tuple[Run, ...]
    failed: dict[str, str]


def run_sweep(sweep: Sweep, data_dir: Path | None, device: torch.device, watcher: Watcher) -> Outcome:
    """Make every run that is missing, and go on with one that was killed. One that fails does not stop the others.

    Args:
        sweep: What is asked for.
        data_dir: Where data sets are.
        device: Where to train.
        watcher: Is told what happens.

    Raises:
        ConfigError: A cut-off is beyond the catalogue, or a run that is there has other settings; nothing is trained.
        DataError: There is no such data set, or it cannot be read; nothing is trained.
    """
    for planned in sweep.planned:
        _refuse_other(planned)
    data = DataSource(data_dir)
    _check_cutoffs(sweep, data.of(sweep.planned[0].config)[0].n_items)
    done: list[Run] = []
    failed: dict[str, str] = {}
    for number, planned in enumerate(sweep.planned, 1):
        info, known, error = None, False, ""
        try:
            dataset, fingerprint = data.of(planned.config)
            info = _finished(planned, fingerprint)
            known = info is not None
            if info is None:
                with watcher.begin(number, planned) as reporter:
                    trainer = Trainer(planned.config, dataset, planned.folder, device=device, reporter=reporter)
                    info = _judged(planned, trainer.fit(resume=True))
            # A run that stopped early under another budget is, to the bit, the one that is asked for.
            asked = info.model_copy(update={"config": planned.config})
            done.append(Run(planned.folder / BEST, asked, planned.name))
        except (DvibError, RuntimeError, MemoryError) as problem:
            info, error = None, f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            failed[planned.label] = error
        watcher.end(number, planned, info, known=known, error=error)
    return Outcome(tuple(done), failed)


def _check_cutoffs(sweep: Sweep, n_items: int) -> None:
    """Refuse metrics that cannot be computed; all runs share the catalogue."""
    said = {f"compare.metrics: {metric}": metric for metric in sweep.metrics}
    for planned in sweep.planned:
        monitor = planned.config.training.monitor
        said[f"runs.{planned.name}: training.monitor={monitor}"] = monitor
    for what, metric in said.items():
        if int(metric.partition("@")[2]) > n_items:
            raise ConfigError(f"{what} exceeds the catalogue of {n_items} items; choose a smaller cut-off")


def _refuse_other(planned: Planned) -> None:
    """Refuse a run whose folder holds one with other settings, as far as its checkpoint says.

    Runs of several budgets in one table would compare nothing.
    """
    try:
        info = read_checkpoint_info(planned.folder / BEST)
    except CheckpointError:
        return  # there is none, or the run itself will say why it cannot be used
    _judged(planned, info, whole=False)


def _judged(planned: Planned, info: CheckpointInfo, *, whole: bool = True) -> CheckpointInfo:
    """Return the description of a run if it is the one that was asked for, or may become it where not ``whole``."""
    key = differing_key(info, planned.config)
    if key is None and (is_whole(info, planned.config) or not whole):
        return info
    key = key or "training.epochs"
    asked, there = (json.dumps(flat(config).get(key)) for config in (planned.config, info.config))
    raise ConfigError(
        f"{planned.label}: {key}={asked} was {there} in {planned.folder}; set it back, remove that folder, or choose "
        "another --out"
    )


def _finished(planned: Planned, fingerprint: str) -> CheckpointInfo | None:
    """Return the description of a run that is there, whole and over; ``Trainer`` judges whatever else is there."""
    folder = planned.folder / BEST
    if not (folder / INFO).exists():
        return None
    try:
        info = read_checkpoint_info(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, after removing {planned.folder}") from error
    return info if is_whole(info, planned.config) and info.dataset.fingerprint == fingerprint else None
