"""Runs that are there: found below folders, read, and grouped into lines that differ only in the seed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.checkpoint import BEST, INFO, CheckpointInfo, find_checkpoint, read_info
from training.common.errors import CheckpointError, ConfigError, first_problem
from training.config import RunConfig

_DEEP = 4
"""Levels of folders that are searched for runs."""
_HASH = 8
"""Digits of a fingerprint that tell data apart in a label."""
LOGGED = ("training.watch_every",)
"""Keys that change nothing but the log."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The checkpoint's folder.
        info: Its description.
        name: What a table calls its line; "" lets its configuration say.
    """

    folder: Path
    info: CheckpointInfo
    name: str = ""


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Read the descriptions of runs.

    Args:
        places: Runs, checkpoints, or folders with runs below them (a sweep's).

    Returns:
        The runs, each once, in the order given; below a folder by name.

    Raises:
        CheckpointError: No run there, or one that has not finished.
    """
    found: dict[Path, Run] = {}
    for place in places:
        folders = list(_below(place))
        if not folders:
            raise CheckpointError(f"no run at {place} or below it; run dvib-train fit first")
        for folder in folders:
            key = folder.resolve()
            if key not in found:
                found[key] = Run(folder, finished_info(folder))
    return list(found.values())


def _below(place: Path, depth: int = _DEEP) -> Iterator[Path]:
    folder = find_checkpoint(place)
    if (folder / INFO).is_file():
        yield folder
    elif depth and place.is_dir():
        for inner in sorted(place.iterdir(), key=_natural):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _below(inner, depth - 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def read_checkpoint_info(folder: Path) -> CheckpointInfo:
    """Read a checkpoint's description alone.

    Raises:
        CheckpointError: Missing, malformed, or of another schema version.
    """
    try:
        return CheckpointInfo.model_validate(read_info(folder / INFO))
    except ValidationError as error:
        raise CheckpointError(f"{folder / INFO}: {first_problem(error)}; train again") from error


def finished_info(folder: Path) -> CheckpointInfo:
    """Read the description of a checkpoint whose run is over.

    Raises:
        CheckpointError: Missing, malformed, of another schema version, or not finished.
    """
    info = read_checkpoint_info(folder)
    if not info.finished:
        run = folder.parent if folder.name == BEST else folder
        # Without its own configuration, only a run that was started with the defaults would go on.
        going_on = shlex.join(["dvib-train", "fit", "--config", str(folder / INFO), "--resume", "--out", str(run)])
        raise CheckpointError(f"{run}: the run has not finished; go on with it: {going_on}")
    return info


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs of one name, configuration and data, but for the seed and what is logged; each group by seed.

    Raises:
        ConfigError: The same run twice.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.name, run.info.dataset.fingerprint, _settings(run)])
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.info.config.training.seed)
        for one, other in pairwise(group):
            if one.info.config.training.seed == other.info.config.training.seed:
                raise ConfigError(f"{one.folder} and {other.folder} are the same run twice; leave one out")
    return list(groups.values())


def _settings(run: Run) -> dict[str, Any]:
    """Return what the runs of a line share."""
    return {key: value for key, value in flat(run.info.config).items() if key not in ("training.seed", *LOGGED)}


def flat(config: RunConfig) -> dict[str, Any]:
    """Return every setting of a configuration under its dotted key."""
    found: dict[str, Any] = {}
    for section, values in config.model_dump(mode="json").items():
        if isinstance(values, dict):
            found |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            found[section] = values
    return found


def labels_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name lines by model and variant, and where that is not enough by the settings that differ, or else the data."""
    names, settings, data = [], [], []
    for group in groups:
        config = group[0].info.config
        variant = config.dvib.variant
        plain = config.model_name if variant == "none" else f"{config.model_name} + DVIB {variant}"
        names.append(group[0].name or plain)
        settings.append(_settings(group[0]))
        data.append(group[0].info.dataset.fingerprint)
    labels: list[str] = []
    for number, (name, mine) in enumerate(zip(names, settings, strict=True)):
        namesakes = [other for other, label in enumerate(names) if label == name]
        differing = [key for key in mine if any(settings[other].get(key) != mine[key] for other in namesakes)]
        said = [f"{key}={_shown(mine[key])}" for key in differing]
        if any(settings[other] == mine and data[other] != data[number] for other in namesakes):
            said.append(f"data={data[number][:_HASH]}")
        labels.append(f"{name} ({', '.join(said)})" if said else name)
    return labels


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
