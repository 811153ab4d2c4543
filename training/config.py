"""One run's complete configuration, put together from defaults, a preset and dotted overrides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.common.choices import Preset, Variant
from training.common.errors import ConfigError, nearest
from training.data.options import DataOptions
from training.dvib.config import DvibConfig
from training.evaluation import METRICS
from training.models import model_class
from training.settings import SECTIONS, Setting, layers


class TrainingConfig(BaseModel):
    """How the parameters are fitted. Defaults: MMRec's protocol (Adam, batches of 2048, Recall@20 on validation)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Adam's step size")
    batch_size: int = Field(2048, ge=1, le=2**31 - 1, description="training interactions per step")
    epochs: int = Field(1000, ge=1, description="at most so many passes over the training interactions")
    patience: int = Field(20, ge=1, description="stop after so many evaluations in a row without an improvement")
    monitor: str = Field("recall@20", pattern=rf"^({'|'.join(METRICS)})@[1-9]\d*$", description="validation metric")
    monitor_decimals: int | None = Field(
        None, ge=1, description="round the metric before comparing, as MMRec does (4); null compares exactly"
    )
    rank_before_last_step: bool = Field(
        False,
        description="validate, store and export the weights before each epoch's last step: what ranking with a result "
        "cached by the last training batch amounts to",
    )
    seed: int = Field(999, ge=0, description="initial values, batches, negatives and noise (999 is MMRec's)")


class RunConfig(BaseModel):
    """Everything that determines a run's result, besides the data themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_name: str
    preset: Preset
    dataset: str
    model: dict[str, Any] = Field(description="the model's own hyper-parameters, complete")
    dvib: DvibConfig
    training: TrainingConfig
    data: DataOptions


def _parse_override(text: str, known: Iterable[str]) -> tuple[str, str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator:
        raise ConfigError(f"--set wants key=value, got '{text}', for example --set training.learning_rate=0.003")
    names = list(known)
    if key not in names:
        raise ConfigError(f"unknown key '{key}'{nearest(key, names)}")
    section, _, name = key.partition(".")
    try:
        return section, name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: '{value}' is no YAML value") from error


def schemas(model_name: str) -> dict[str, type[BaseModel]]:
    """Return section → the schema of its keys, for a model.

    Raises:
        ConfigError: There is no such model.
    """
    return {
        "model": model_class(model_name).Config,
        "dvib": DvibConfig,
        "training": TrainingConfig,
        "data": DataOptions,
    }


def known_keys(model_name: str) -> list[str]:
    """Return every dotted key that ``--set`` takes for a model."""
    keys = [f"{section}.{name}" for section, schema in schemas(model_name).items() for name in schema.model_fields]
    keys.remove("dvib.variant")  # chosen by --dvib, because presets depend on it
    return keys


def preset_settings(model_name: str, dataset: str, variant: Variant, preset: Preset) -> dict[str, dict[str, Setting]]:
    """Return section → key → what a preset says for this model, data set and variant.

    Raises:
        ConfigError: An unknown model, or an unknown key in the preset.
    """
    keys = known_keys(model_name)
    sections: dict[str, dict[str, Setting]] = {section: {} for section in SECTIONS}
    for layer in layers(preset, model_name, dataset, variant):
        for section, settings in layer.items():
            unknown = [f"{section}.{name}" for name in settings if f"{section}.{name}" not in keys]
            if unknown:
                raise ConfigError(f"preset {preset}: unknown key '{unknown[0]}'{nearest(unknown[0], keys)}")
            sections[section].update(settings)
    return sections


def build_config(
    *, model_name: str, dataset: str, variant: Variant = "none", preset: Preset = "paper", overrides: Iterable[str] = ()
) -> RunConfig:
    """Put a configuration together: defaults, preset, preset for this model, for this data set, overrides.

    Args:
        model_name: A key of ``training.models.MODELS``.
        dataset: Name of the data set.
        variant: ``none``, ``constant`` or ``adaptive``.
        preset: ``tuned``, ``paper`` or ``reference``.
        overrides: ``section.key=value`` with YAML values.

    Raises:
        ConfigError: An unknown model or key (the message names the nearest), or a value out of range.
    """
    keys = known_keys(model_name)
    sections: dict[str, dict[str, Any]] = {
        section: {name: setting.value for name, setting in settings.items()}
        for section, settings in preset_settings(model_name, dataset, variant, preset).items()
    }
    for text in overrides:
        section, name, value = _parse_override(text, keys)
        sections[section][name] = value
    sections["dvib"]["variant"] = variant
    where: tuple[str, ...] = ("model",)
    try:
        model = model_class(model_name).Config.model_validate(sections["model"]).model_dump()
        where = ()
        return RunConfig.model_validate(
            {"model_name": model_name, "preset": preset, "dataset": dataset, **sections, "model": model}
        )
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            # Two settings that do not go together: the message names both.
            raise ConfigError(str(first["ctx"]["error"])) from error
        place = ".".join(str(part) for part in (*where, *first["loc"]))
        raise ConfigError(f"{place}: {first['msg']}, got {first['input']!r}") from error
