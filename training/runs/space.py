"""What a search may vary: the same keys and ranges for the plain model and for DVIB, whose own keys come on top."""

from __future__ import annotations

import math
from importlib.resources import as_file, files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.common.choices import Variant
from training.common.errors import ConfigError, nearest, shown
from training.config import known_keys, schemas
from training.models import MODELS
from training.runs.config_file import read_document

SECTIONS = ("shared", "models", "dvib", "constant", "adaptive")
FIXED = {
    "training.monitor": "trials would be judged by different metrics",
    "training.seed": "the luckiest seed would be chosen",
    "training.epochs": "it is a budget, the same for all",
    "data.min_rating": "trials would be judged on different interactions",
    "data.k_core": "trials would be judged on different interactions",
    "data.split": "trials would be judged on different interactions",
    "data.split_seed": "trials would be judged on different interactions",
    "data.transforms": "trials would be judged on different data",
    "data.transform_seed": "trials would be judged on different data",
}
"""Keys that no search may vary, and why."""

Scalar = bool | int | float | str | None


class Axis(BaseModel):
    """A range, ends included (of whole numbers where both ends are, which a file's keys decide), or a choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float | None = Field(default=None, description="least value")
    high: int | float | None = Field(default=None, description="greatest value")
    log: bool = Field(default=False, description="draw evenly over magnitudes")
    choices: tuple[Scalar, ...] | None = Field(default=None, min_length=1, description="the values, instead of a range")
    source: str = Field(default="", description="where it is from")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("either low and high, or choices are wanted")
        if self.choices is not None and (self.low is not None or self.high is not None):
            raise ValueError("either low and high, or choices are wanted")
        if self.low is not None and self.high is not None:
            if not (math.isfinite(self.low) and math.isfinite(self.high)):
                raise ValueError(f"finite ends are wanted, got {self.low} and {self.high}")
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"log wants a low above 0, got {self.low}")
        return self

    @property
    def probes(self) -> tuple[Scalar, ...]:
        """Values that a configuration must take for the whole axis to be good."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def document(self) -> dict[str, Any]:
        """Return what determines the draws, as a JSON value."""
        return self.model_dump(mode="json", exclude={"source"})


def read_space(path: Path | None, model_name: str, variant: Variant) -> dict[str, Axis]:
    """Return key → axis for a variant, the shared keys first.

    Args:
        path: YAML or JSON with the sections ``shared``, ``models``, ``dvib``, ``constant``, ``adaptive``; None takes
            what comes with this package.
        model_name: Whose keys below ``models`` count.
        variant: Which sections count.

    Raises:
        ConfigError: An unknown section, model or key (with the nearest), a key twice, a key that must not be searched,
            or no range; in whichever section.
    """
    if path is None:
        with as_file(files("training") / "runs" / "search.yaml") as packaged:
            return _space(read_document(packaged), "the built-in search space", model_name, variant)
    return _space(read_document(path), str(path), model_name, variant)


def _space(document: dict[str, Any], where: str, model_name: str, variant: Variant) -> dict[str, Axis]:
    for name in document:
        if name not in SECTIONS:
            raise ConfigError(f"{where}: unknown key {shown(name)}{nearest(name, SECTIONS)}")
    models = _mapping(document.get("models"), f"{where}: models")
    for name in models:
        if name not in MODELS:
            raise ConfigError(f"{where}: models: no model {shown(name)}{nearest(name, MODELS)}")
    # What this search leaves out is read as well: a mistake there would show only in the next search.
    read = {name: _section(document.get(name), where, name, model_name) for name in SECTIONS if name != "models"}
    read |= {f"models.{name}": _section(values, where, f"models.{name}", name) for name, values in models.items()}
    chosen = ["shared", f"models.{model_name}", *(["dvib", variant] if variant != "none" else [])]
    axes: dict[str, Axis] = {}
    for name in chosen:
        for key, axis in read.get(name, {}).items():
            if key in axes:
                raise ConfigError(f"{where}: {name}.{key} is there already in another section; keep one")
            axes[key] = axis
    if not axes:
        raise ConfigError(f"{where}: nothing to search for {model_name}; give at least one key")
    return axes


def _section(values: object, where: str, name: str, model_name: str) -> dict[str, Axis]:
    """Read a section, whose keys are those of a model."""
    keys = known_keys(model_name)
    axes: dict[str, Axis] = {}
    for key, value in _mapping(values, f"{where}: {name}").items():
        place = f"{where}: {name}.{key}"
        if key not in keys:
            raise ConfigError(f"{where}: {name}: unknown key {shown(key)}{nearest(key, keys)}")
        if key in FIXED:
            raise ConfigError(f"{place} cannot be searched: {FIXED[key]}")
        axes[key] = _typed(_axis(value, place), key, model_name, place)
    return axes


def _typed(axis: Axis, key: str, model_name: str, place: str) -> Axis:
    """Make a range one of whole numbers or of real ones, as the key's schema wants, however its ends are written."""
    if axis.low is None or axis.high is None:
        return axis
    section, _, name = key.partition(".")
    types = _types(schemas(model_name)[section].model_fields[name].annotation)
    if float in types:
        return axis.model_copy(update={"low": float(axis.low), "high": float(axis.high)})
    if int not in types:
        raise ConfigError(f"{place}: it is no number; give choices instead of a range")
    if int(axis.low) != axis.low or int(axis.high) != axis.high:
        raise ConfigError(f"{place}: whole numbers are wanted, got {axis.low} and {axis.high}")
    return axis.model_copy(update={"low": int(axis.low), "high": int(axis.high)})


def _types(annotation: object) -> set[object]:
    """Return the types of which a value may be: ``int`` and none for ``Annotated[int, …] | None``."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return {inner for part in get_args(annotation) for inner in _types(part)}
    return {annotation}


def _axis(value: object, place: str) -> Axis:
    try:
        return Axis.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        what = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        inner = "".join(f".{part}" for part in first["loc"])
        raise ConfigError(
            f"{place}{inner}: {what}, for example {{low: 0.001, high: 0.1, log: true}} or {{choices: [1, 2]}}"
        ) from error


def _mapping(value: object, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ConfigError(f"{place}: a mapping of keys is wanted, got {shown(str(value))}")
