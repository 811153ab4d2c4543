"""Presets: YAML files in which every value stands beside its source.

A leaf is ``key: {value: ..., source: "..."}``. A file holds settings for everything, and below ``models.NAME``,
``datasets.NAME`` and ``variants.NAME`` settings for less; the more particular win. One that says ``extends: OTHER``
comes after all that the other says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from training.common.choices import Preset, Variant
from training.common.errors import ConfigError

SECTIONS = ("model", "dvib", "robust", "training", "data")


@dataclass(frozen=True)
class Setting:
    """A value and where it is from.

    Attributes:
        value: As YAML gives it.
        source: A paper's section, MMRec, the authors' code, or how it was chosen.
    """

    value: Any
    source: str


Layer = Mapping[str, Mapping[str, Setting]]
"""Section → key → setting."""


def preset_document(name: str) -> dict[str, Any]:
    """Read a preset's file.

    Raises:
        ConfigError: It is no mapping.
    """
    document = yaml.safe_load((files("training") / "presets" / f"{name}.yaml").read_text("utf-8"))
    if not isinstance(document, dict):
        raise ConfigError(f"preset {name} is not a mapping")
    return document


def layers(preset: Preset, model_name: str, dataset: str, variant: Variant) -> Iterator[Layer]:
    """Yield a preset's settings for one run, from the general to the particular.

    Raises:
        ConfigError: A value without a source.
    """
    document = preset_document(preset)
    if "extends" in document:
        yield from layers(document["extends"], model_name, dataset, variant)
    for scope in (document, document.get("datasets", {}).get(dataset, {})):
        of_model = scope.get("models", {}).get(model_name, {})
        for part in (scope, of_model, of_model.get("variants", {}).get(variant, {})):
            yield {
                section: {name: _setting(leaf, f"preset {preset}: {section}.{name}") for name, leaf in values.items()}
                for section, values in part.items()
                if section in SECTIONS
            }


def _setting(leaf: object, place: str) -> Setting:
    if isinstance(leaf, dict) and leaf.keys() == {"value", "source"} and isinstance(leaf["source"], str):
        return Setting(leaf["value"], leaf["source"])
    raise ConfigError(f"{place}: wanted {{value: ..., source: '...'}}, got {leaf!r}")
