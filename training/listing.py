"""What ``dvib-train list`` shows: what there is to choose from, and every setting of one choice with its source."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import torch
from rich.table import Table
from rich.text import Text

from training.common.choices import Preset, Variant
from training.common.errors import DataError
from training.config import build_config, known_keys, preset_settings, schemas
from training.data.fetch import DEFAULT_DATASET
from training.data.transform_specs import MEANINGS
from training.models import MODELS, model_class
from training.models.base import ModelData
from training.settings import preset_document

PRESETS: tuple[Preset, ...] = get_args(Preset)
VARIANTS: dict[Variant, str] = {
    "none": "the plain model",
    "constant": "DVIB_c: noise of one scale σ (paper, Eq. 11)",
    "adaptive": "DVIB_a: noise of a learned scale φ for each row (paper, Eq. 12)",
}
_PRESETS: dict[Preset, str] = {
    "tuned": "the published mathematics, with what was chosen on validation data; elsewhere as paper (the default)",
    "paper": "the published mathematics, with a true Jensen–Shannon divergence",
    "reference": "what the authors' released code computes, flaws included",
}
_ROBUST = {
    "robust.amr=true": "AMR: the loss once more on features that an adversary moved (Tang et al., TKDE 2019); for "
    + ", ".join(name for name, cls in MODELS.items() if cls.shifts_features),
    "robust.mg=true": "Mirror Gradient: some steps down are followed by one up (Zhong et al., WWW 2024)",
}
# Authors, title in quotes, and where: the way in which every model's file names its paper.
_CITATION = re.compile(r'^([^"]+), "([^"]+)", ([^,;:]*?\b\d{4})\b')


def overview() -> Iterator[Table]:
    """Yield tables of models, variants, presets, robust trainings, transforms and data sets."""
    yield _models()
    named: tuple[tuple[str, Iterable[tuple[str, str]]], ...] = (
        ("Variants (--dvib)", VARIANTS.items()),
        ("Presets (--preset)", _PRESETS.items()),
        ("Robust trainings, alone or with DVIB (--set)", _ROBUST.items()),
        ("Noise and redundancy put into the data (--transform)", MEANINGS.items()),
    )
    for title, entries in named:
        table = _table(title, "name", "meaning")
        for name, meaning in entries:
            # As text: what stands in brackets would be taken for markup.
            table.add_row(Text(name), meaning)
        yield table
    yield _datasets()


def settings(model_name: str, dataset: str, variant: Variant, preset: Preset) -> Table:
    """Return a table of every setting of one combination: value, meaning and source.

    Raises:
        ConfigError: There is no such model.
    """
    config = build_config(model_name=model_name, dataset=dataset, variant=variant, preset=preset)
    sources = preset_settings(model_name, dataset, variant, preset)
    fields = schemas(model_name)
    table = _table(
        f"{model_name}, DVIB {variant}, preset {preset}, data set {dataset}", "key", "value", "meaning", "source"
    )
    values: dict[str, dict[str, Any]] = config.model_dump()
    for key in known_keys(model_name):
        section, _, name = key.partition(".")
        setting = sources[section].get(name)
        meaning = fields[section].model_fields[name].description or ""
        source = "default" if setting is None else setting.source
        # As text: what stands in brackets would be taken for markup.
        table.add_row(*map(Text, (key, _shown(values[section][name]), meaning, source)))
    return table


def _models() -> Table:
    table = _table("Models (--model)", "name", "what it is", "paper", "vector width", "needs a modality")
    for name in MODELS:
        what, paper = described(name)
        width, needy = measured(name)
        table.add_row(name, what, paper, str(width), "yes" if needy else "no")
    table.caption = "vector width: of users and items at serving, for two modalities and the paper's settings"
    table.caption_justify = "left"
    return table


def described(model_name: str) -> tuple[str, str]:
    """Return what a model is and its paper, from its file's docstring; "" for what that does not say."""
    text = inspect.getdoc(inspect.getmodule(model_class(model_name))) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    _, _, what = paragraphs[0].partition(": ")
    found = next((match for paragraph in paragraphs if (match := _CITATION.match(paragraph))), None)
    return what.rstrip("."), f"{found[1]}, {found[3]}" if found else ""


def measured(model_name: str) -> tuple[int, bool]:
    """Return the width of a model's vectors, and whether it needs features: by making a tiny one."""
    cls = model_class(model_name)
    config = cls.Config.model_validate(build_config(model_name=model_name, dataset="").model)
    draw = torch.Generator().manual_seed(0)
    features = {name: torch.randn(16, 4, generator=draw) for name in ("image", "text")}
    edges = torch.stack([torch.arange(16) % 4, torch.arange(16)])
    with torch.no_grad():
        users, _ = cls(config, ModelData(4, 16, features, edges), draw).vectors()
    try:
        cls(config, ModelData(4, 16, {}, edges), draw)
    except DataError:
        return users.shape[1], True
    return users.shape[1], False


def _datasets() -> Table:
    known: dict[str, list[str]] = {DEFAULT_DATASET: []}
    for preset in PRESETS:
        for name, scope in preset_document(preset).get("datasets", {}).items():
            for_models = f" ({', '.join(scope['models'])})" if "models" in scope else ""
            known.setdefault(name, []).append(f"{preset}{for_models}")
    table = _table("Data sets (--dataset)", "name", "where it is", "presets with settings of its own")
    for name, presets in known.items():
        where = "built in, fetched when first used" if name == DEFAULT_DATASET else "below --data-dir"
        table.add_row(name, where, ", ".join(presets))
    table.caption = "any other folder below --data-dir works as well"
    table.caption_justify = "left"
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=False, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    return table


def _shown(value: object) -> str:
    """Write a value the way ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
