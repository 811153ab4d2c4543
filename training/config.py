"""One run's complete configuration, put together from defaults, a preset and dotted overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.common.choices import Preset, Variant
from training.common.errors import ConfigError, nearest
from training.data.options import DataOptions
from training.dvib.config import DvibConfig
from training.evaluation import METRICS
from training.models import MODELS, model_class
from training.passes import Precision
from training.robust.config import RobustConfig
from training.settings import SECTIONS, Setting, layers

_VARIANT = "dvib.variant"


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
    clip_norm: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="scale a step's gradient down to this norm; null does not"
    )
    precision: Precision = Field(
        "float32",
        description="of the products in the model's two maps; H, Z, losses, parameters and evaluation stay in float32. "
        "A σ that is small beside H drowns in the rounding of fewer bits. float16 needs CUDA",
    )
    compile: bool = Field(
        False, description="run the model's parts through torch.compile: a slow start for faster steps, mainly on CUDA"
    )
    watch_every: int = Field(
        5,
        ge=0,
        description="measure what each loss term is worth in the first five epochs and in every so-many-th from there; "
        "0 never does. Changes nothing but the log",
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
    robust: RobustConfig = Field(default_factory=RobustConfig)
    training: TrainingConfig
    data: DataOptions

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.robust.amr and not model_class(self.model_name).shifts_features:
            able = ", ".join(name for name, cls in MODELS.items() if cls.shifts_features)
            raise ValueError(
                f"robust.amr=true moves each item's own features, which {self.model_name} does not read one by one; "
                f"models that do: {able}"
            )
        return self


def _parse_override(text: str, known: Iterable[str]) -> tuple[str, str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator:
        raise ConfigError(f"--set wants key=value, got '{text}', for example --set training.learning_rate=0.003")
    names = list(known)
    if key == _VARIANT:
        choice = value.strip() if value.strip() in get_args(Variant) else "none, constant or adaptive"
        raise ConfigError(f"{key} is chosen by --dvib, and presets depend on it; pass --dvib {choice}")
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
        "robust": RobustConfig,
        "training": TrainingConfig,
        "data": DataOptions,
    }


def known_keys(model_name: str) -> list[str]:
    """Return every dotted key that ``--set`` takes for a model."""
    keys = [f"{section}.{name}" for section, schema in schemas(model_name).items() for name in schema.model_fields]
    keys.remove(_VARIANT)  # chosen by --dvib, because presets depend on it
    return keys


def _refuse_booleans(section: str, schema: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Refuse true and false where a number is wanted: pydantic would take them for 1 and 0."""
    for name, value in values.items():
        kinds = _kinds(schema.model_fields[name].annotation) if name in schema.model_fields else set[type]()
        parts = value if isinstance(value, list | tuple) else [value]
        wrong = [part for part in parts if isinstance(part, bool)]
        if wrong and kinds & {int, float} and bool not in kinds:
            raise ConfigError(f"{section}.{name}: a number is wanted, got {wrong[0]}")


def _kinds(annotation: object) -> set[type]:
    """Return every plain type that an annotation is made of."""
    own = {annotation} if isinstance(annotation, type) else set()
    return own.union(*map(_kinds, get_args(annotation)))


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
    *,
    model_name: str,
    dataset: str,
    variant: Variant = "none",
    preset: Preset = "paper",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Put a configuration together: defaults, preset, preset for this model, for this data set, settings, overrides.

    Args:
        model_name: A key of ``training.models.MODELS``.
        dataset: Name of the data set.
        variant: ``none``, ``constant`` or ``adaptive``.
        preset: ``tuned``, ``paper`` or ``reference``.
        settings: Section → key → value, of known keys: what a file of settings says.
        overrides: ``section.key=value`` with YAML values.

    Raises:
        ConfigError: An unknown model or key (the message names the nearest), or a value out of range.
    """
    keys = known_keys(model_name)
    sections: dict[str, dict[str, Any]] = {
        section: {name: setting.value for name, setting in said.items()}
        for section, said in preset_settings(model_name, dataset, variant, preset).items()
    }
    for section, values in (settings or {}).items():
        sections[section].update(values)
    for text in overrides:
        section, name, value = _parse_override(text, keys)
        sections[section][name] = value
    for section, schema in schemas(model_name).items():
        _refuse_booleans(section, schema, sections[section])
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
