"""Runs that are there: found below folders, read, and grouped into lines that differ only in the seed."""

from __future__ import annotations

import json
import re
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
        raise CheckpointError(f"{run}: the run has not finished; go on with it: dvib-train fit --resume --out {run}")
    return info


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs of one name and configuration but for the seed; each group by seed.

    Raises:
        ConfigError: The same run twice.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = run.info.config.model_dump(mode="json")
        del config["training"]["seed"]
        groups.setdefault(json.dumps([run.name, config]), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.info.config.training.seed)
        for one, other in pairwise(group):
            if one.info.config == other.info.config:
                raise ConfigError(f"{one.folder} and {other.folder} are the same run twice; leave one out")
    return list(groups.values())


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
    """Name lines by model and variant, and where that is not enough by what else differs."""
    names, settings = [], []
    for group in groups:
        config = group[0].info.config
        variant = config.dvib.variant
        plain = config.model_name if variant == "none" else f"{config.model_name} + DVIB {variant}"
        names.append(group[0].name or plain)
        settings.append({key: value for key, value in flat(config).items() if key != "training.seed"})
    labels: list[str] = []
    for name, mine in zip(names, settings, strict=True):
        namesakes = [other for label, other in zip(names, settings, strict=True) if label == name]
        differing = [key for key in mine if any(other.get(key) != mine[key] for other in namesakes)]
        said = ", ".join(f"{key}={_shown(mine[key])}" for key in differing)
        labels.append(f"{name} ({said})" if said else name)
    return labels


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
