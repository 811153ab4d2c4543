from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel

from training import config as module
from training.common.choices import Preset, Variant
from training.common.errors import ConfigError
from training.config import RunConfig, TrainingConfig, build_config, known_keys
from training.data.options import DataOptions
from training.dvib.config import DvibConfig
from training.models import MODELS, model_class

PRESETS: tuple[Preset, ...] = get_args(Preset)
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def build(*overrides: str, **arguments: Any) -> RunConfig:
    return build_config(**{"model_name": "vbpr", "dataset": "toy", "overrides": overrides, **arguments})


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_combination_builds_and_survives_json(model_name: str, preset: Preset, variant: Variant) -> None:
    built = build(model_name=model_name, preset=preset, variant=variant)
    assert (built.model_name, built.preset, built.dvib.variant) == (model_name, preset, variant)
    assert RunConfig.model_validate_json(built.model_dump_json()) == built
    # The model's section is complete: nothing of a run depends on a default that may change later.
    assert set(built.model) == set(model_class(model_name).Config.model_fields)


def test_the_paper_preset_says_what_the_schemas_default_to() -> None:
    document = module._preset_document("paper")
    for section, defaults in (("dvib", DvibConfig.model_validate({})), ("training", TrainingConfig.model_validate({}))):
        known = defaults.model_dump()
        for name, value in document[section].items():
            assert (section, name, tuple(value) if isinstance(value, list) else value) == (section, name, known[name])
    model = model_class("vbpr").Config().model_dump()
    assert document["models"]["vbpr"]["model"].items() <= model.items()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_known_keys_only_and_spells_out_the_method(preset: Preset) -> None:
    document = module._preset_document(preset)
    schemas: dict[str, type[BaseModel]] = {"dvib": DvibConfig, "training": TrainingConfig, "data": DataOptions}
    assert set(document) <= {*schemas, "models", "datasets"}
    for section, schema in schemas.items():
        assert set(document.get(section, {})) <= set(schema.model_fields)
    for name, settings in document["models"].items():
        assert set(settings["model"]) <= set(model_class(name).Config.model_fields)
    unsaid = set(DvibConfig.model_fields) - set(document["dvib"]) - {"variant"}
    assert unsaid <= ({"phi_is"} if document["dvib"]["regulariser"] == "kl_std" else set())


def test_the_reference_preset_differs_as_specified() -> None:
    dvib = build(preset="reference").dvib
    assert (dvib.divergence, dvib.distil_on, dvib.rows, dvib.mix) == ("ref_entropy", "scores", "all", "convex")
    assert (dvib.regulariser, dvib.prior, dvib.gamma_r, dvib.decay_both) == ("kl_std", 0.5, 0.001, True)
    training = build(preset="reference").training
    assert (training.monitor_decimals, training.patience) == (4, 21)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dvib.gama_d=1", r"unknown key 'dvib\.gama_d'; did you mean 'dvib\.gamma_d'\?"),
        ("training.lerning_rate=1", r"did you mean 'training\.learning_rate'\?"),
        ("model.dimensions=8", r"did you mean 'model\.dimension'\?"),
        ("learning_rate=1", r"unknown key 'learning_rate'; did you mean 'training\.learning_rate'\?"),
        ("zzz=1", r"unknown key 'zzz'; known: data\..*, training\.seed"),
        ("training.seed", r"--set wants key=value, got 'training\.seed', for example --set training\.learning_rate"),
        ("training.seed=[1", r"--set training\.seed: '\[1' is no YAML value"),
        ("training.learning_rate=fast", r"training\.learning_rate: .*number.*'fast'"),
        ("training.learning_rate=0", r"training\.learning_rate: .*greater than 0"),
        ("training.epochs=2.5", r"training\.epochs: .*integer.*2\.5"),
        ("training.seed=-1", r"training\.seed: .*-1"),
        ("training.monitor=recall", r"training\.monitor: .*'recall'"),
        ("training.monitor=recall@0", r"training\.monitor: "),
        ("training.monitor=clicks@10", r"training\.monitor: "),
        ("dvib.mix=multiply", r"dvib\.mix: .*'add' or 'convex'.*'multiply'"),
        ("dvib.gamma_d=-0.1", r"dvib\.gamma_d: "),
        ("dvib.prior=0", r"dvib\.prior: "),
        ("dvib.sigma=", r"dvib\.sigma: .*None"),
        ("model.dimension=0", r"model\.dimension: .*greater than or equal to 1, got 0"),
        ("model.regularisation=x", r"model\.regularisation: .*'x'"),
        ("data.split=alphabetical", r"data\.split: "),
    ],
)
def test_bad_settings_name_the_key_and_the_value(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(override)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'vbrp'; did you mean 'vbpr'\?"):
        build(model_name="vbrp")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=0.003", 0.003),
        ("training.learning_rate=3e-3", 0.003),  # YAML 1.1 reads this as a string; it must work all the same
        ("training.learning_rate=1", 1.0),
        ("training.batch_size= 64", 64),
        (" training.monitor =ndcg@10", "ndcg@10"),
        ("training.monitor_decimals=4", 4),
        ("training.monitor_decimals=null", None),
        ("dvib.net_phi_hidden=[8, 4]", (8, 4)),
        ("dvib.net_phi_hidden=[]", ()),
        ("dvib.decay_both=true", True),
        ("dvib.phi_is=var", "var"),
        ("data.min_rating=4", 4.0),
        ("data.min_rating=~", None),
        ("model.regularisation=1e-4", 1e-4),
    ],
)
def test_overrides_are_yaml_values(override: str, value: object) -> None:
    built = build(override)
    section, _, name = override.partition("=")[0].strip().partition(".")
    holder: Any = getattr(built, section)
    assert (holder[name] if isinstance(holder, dict) else getattr(holder, name)) == value


def test_the_last_override_wins() -> None:
    assert build("training.seed=1", "training.seed=2").training.seed == 2


def test_the_variant_is_an_argument_and_no_override() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'dvib\.variant'"):
        build("dvib.variant=adaptive", variant="none")


def test_particular_settings_win_over_general_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [("dvib", name) for name in ("sigma", "gamma_0", "gamma_d", "gamma_r", "prior")]
    keys += [("training", "seed"), ("training", "patience")]

    def settings(level: int, scale: int = 1) -> dict[str, dict[str, int]]:
        """Each level sets its own key and those of all levels after it, so that the order is seen."""
        result: dict[str, dict[str, int]] = {"dvib": {}, "training": {}}
        for section, name in keys[level - 1 :]:
            result[section][name] = scale * level
        return result

    def of_model(level: int) -> dict[str, Any]:
        variants = {"constant": settings(level + 1), "adaptive": settings(1, 99)}
        return {"vbpr": {**settings(level), "variants": variants}, "other": settings(1, 99)}

    document = {
        **settings(1),
        "models": of_model(2),
        "datasets": {"toy": {**settings(4), "models": of_model(5)}, "elsewhere": settings(1, 99)},
    }
    monkeypatch.setattr(module, "_preset_document", lambda _: document)
    built = build("training.patience=7", variant="constant")
    assert [getattr(getattr(built, section), name) for section, name in keys] == [1, 2, 3, 4, 5, 6, 7]
    assert build("training.patience=7", variant="constant", dataset="unheard-of").training.seed == 3
    assert build("training.patience=7", variant="none").training.seed == 5


def test_a_preset_with_an_unknown_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_preset_document", lambda _: {"dvib": {"gamma_x": 1}})
    with pytest.raises(ConfigError, match=r"preset paper: unknown key 'dvib\.gamma_x'; did you mean 'dvib\.gamma_"):
        build()


def test_known_keys_cover_all_sections() -> None:
    keys = known_keys("vbpr")
    assert {"model.dimension", "dvib.gamma_0", "training.seed", "data.k_core"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_configurations_are_immutable() -> None:
    built = build()
    with pytest.raises(ValueError, match="frozen"):
        built.training.seed = 3
