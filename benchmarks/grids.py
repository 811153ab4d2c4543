"""What ``dvib-bench quality --tune`` tries: ``grids.yaml``, one Cartesian product per model and variant."""

from __future__ import annotations

import itertools
import json
from importlib.resources import files
from typing import Any

import yaml

from training.common.choices import Variant
from training.common.errors import ConfigError, nearest


def grids() -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Return model → variant → key → values."""
    document: dict[str, dict[str, dict[str, list[Any]]]] = yaml.safe_load(
        (files("benchmarks") / "grids.yaml").read_text("utf-8")
    )
    return document


def trials(model: str, variant: Variant) -> list[tuple[str, ...]]:
    """Return the settings to try, each ``section.key=value``.

    Raises:
        ConfigError: There is no grid for the model.
    """
    known = grids()
    if model not in known:
        raise ConfigError(f"no grid for '{model}'{nearest(model, known)}; tune the models that have one")
    axes = known[model][variant]
    return [
        tuple(f"{key}={json.dumps(value)}" for key, value in zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
