"""Settings from a file: YAML or JSON, with the sections and keys of ``RunConfig`` as ``checkpoint.json`` holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from training.common.choices import Preset, Variant
from training.common.errors import ConfigError, nearest, shown
from training.config import RunConfig, build_config, known_keys, schemas
from training.data.fetch import DEFAULT_DATASET

_CHECKPOINT = "dvib.checkpoint"
_LONGEST = 4_000_000
_NAMES = ("model_name", "preset", "dataset")


@dataclass(frozen=True)
class Choices:
    """What a command line says beside a file; None is what it leaves to the file, or else to the default.

    Attributes:
        model: The recommender; vbpr by default.
        dvib: The variant; none by default.
        preset: Where settings begin; tuned by default.
        dataset: Name of the data set; ml-100k by default.
    """

    model: str | None = None
    dvib: Variant | None = None
    preset: Preset | None = None
    dataset: str | None = None


def config_from(choices: Choices, path: Path | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Put a configuration together: preset, file, command line; the later win.

    Args:
        choices: Names that the command line gives.
        path: A file of settings, or a ``checkpoint.json``, whose configuration is then taken as a whole.
        overrides: ``section.key=value``.

    Raises:
        ConfigError: An unknown name or key (the message names the file and the nearest), or a value out of range.
    """
    document = {} if path is None else run_document(path)
    where = "" if path is None else f"{path}: "
    said = {name: document[name] for name in _NAMES if name in document}
    for name, value in said.items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}{name}: a name is wanted, got {value!r}")
    model = choices.model or said.get("model_name", "vbpr")
    try:
        known = schemas(model)
    except ConfigError as error:
        raise ConfigError(f"{'' if choices.model else where}{error}") from error
    keys = known_keys(model)
    sections: dict[str, dict[str, Any]] = {}
    for name, values in document.items():
        if name in _NAMES:
            continue
        if name not in known:
            raise ConfigError(f"{where}unknown key {shown(name)}{nearest(name, [*_NAMES, *known])}")
        sections[name] = dict(_mapping(values, f"{where}{name}"))
    variant = _one_of(Variant, sections.get("dvib", {}).pop("variant", "none"), f"{where}dvib.variant")
    preset = _one_of(Preset, said.get("preset", "tuned"), f"{where}preset")
    for section, values in sections.items():
        for name in values:
            key = f"{section}.{name}"
            if key not in keys:
                raise ConfigError(f"{where}unknown key {shown(key)}{nearest(key, keys)}")

    def build(more: Iterable[str]) -> RunConfig:
        dataset = choices.dataset or said.get("dataset", DEFAULT_DATASET)
        return build_config(
            model_name=model,
            dataset=dataset,
            variant=choices.dvib or variant,
            preset=choices.preset or preset,
            settings=sections,
            overrides=more,
        )

    overrides = tuple(overrides)
    try:
        return build(overrides)
    except ConfigError:
        if path is None:
            raise
        try:
            build(())
        except ConfigError as error:
            # Of a mistake that the command line has not put right.
            raise ConfigError(f"{where}{error}") from error
        raise


def sectioned(settings: Mapping[str, Any], model_name: str) -> dict[str, dict[str, Any]]:
    """Turn dotted key → value into section → key → value.

    Raises:
        ConfigError: An unknown key (the message names the nearest).
    """
    keys = known_keys(model_name)
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key not in keys:
            raise ConfigError(f"unknown key {shown(key)}{nearest(key, keys)}")
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return a configuration with some dotted keys changed.

    Raises:
        ConfigError: An unknown key, or a value out of range.
    """
    document = config.model_dump(mode="json")
    for name in _NAMES:
        del document[name]
    variant = document["dvib"].pop("variant")
    for section, values in sectioned(settings, config.model_name).items():
        document[section].update(values)
    return build_config(
        model_name=config.model_name, dataset=config.dataset, variant=variant, preset=config.preset, settings=document
    )


def run_document(path: Path) -> dict[str, Any]:
    """Read the mapping of names and sections that a file of settings, or a ``checkpoint.json``, holds.

    Raises:
        ConfigError: No such file, or it holds something else.
    """
    document = read_document(path)
    if "schema_name" not in document:
        return document
    if document["schema_name"] != _CHECKPOINT:
        raise ConfigError(f"{path}: a file of settings or a checkpoint.json is wanted, got {document['schema_name']!r}")
    return _mapping(document.get("config"), f"{path}: config")


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file whose top level is a mapping.

    Raises:
        ConfigError: No such file, not readable, a key twice, or no mapping.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) > _LONGEST:
        raise ConfigError(f"{path}: a file of settings is wanted, got {len(raw)} bytes")
    try:
        text = raw.decode("utf-8")
        if path.suffix == ".json":
            document = json.loads(text, object_pairs_hook=_without_doubles)
        else:
            _refuse_doubles(yaml.compose(text, Loader=yaml.SafeLoader))
            document = yaml.safe_load(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: no {'JSON' if path.suffix == '.json' else 'YAML'}: {reason}") from error
    return _mapping(document, str(path))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key {shown(key)} is there twice; keep one")
        found[key] = value
    return found


def _refuse_doubles(root: yaml.Node | None) -> None:
    """Refuse a key that is there twice: YAML's readers keep the last without a word."""
    waiting = [] if root is None else [root]
    met: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            double = next((key for key in keys if keys.count(key) > 1), None)
            if double is not None:
                line = node.start_mark.line + 1
                raise ConfigError(f"the key {shown(double)} is there twice in what begins on line {line}; keep one")
            waiting += [value for _, value in node.value]


def _mapping(value: object, place: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ConfigError(f"{place}: a mapping of names is wanted, got {shown(str(value))}")


def _one_of(choices: Any, value: object, place: str) -> Any:
    names: tuple[str, ...] = get_args(choices)
    if not isinstance(value, str) or value not in names:
        raise ConfigError(f"{place}: no {shown(str(value))}{nearest(str(value), names)}")
    return value
