from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from training import settings as module
from training.common.choices import Preset, Variant
from training.common.errors import ConfigError
from training.config import RunConfig, TrainingConfig, build_config, known_keys, preset_settings
from training.data.options import DataOptions
from training.dvib.config import DvibConfig
from training.models import MODELS, model_class
from training.robust.config import RobustConfig
from training.settings import preset_document

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


def leaves(document: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and content of everything in a preset's file that holds a value, however it is written."""
    for key, value in document.items():
        inner = f"{place}.{key}"
        if isinstance(value, dict) and not {"value", "source"} & value.keys():
            yield from leaves(value, inner)
        elif inner != ".extends":
            yield inner, value


@pytest.mark.parametrize("preset", PRESETS)
def test_every_value_of_a_preset_has_a_source(preset: Preset) -> None:
    found = list(leaves(preset_document(preset)))
    assert len(found) > 5
    for place, leaf in found:
        assert set(leaf) == {"value", "source"}, place
        assert isinstance(leaf["source"], str), place
        assert len(leaf["source"]) >= 4, place


def scopes(preset: Preset) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield every mapping of sections in a preset's file, with the model that it is about."""
    document = preset_document(preset)
    for scope in (document, *document.get("datasets", {}).values()):
        yield None, scope
        for name, of_model in scope.get("models", {}).items():
            yield name, of_model
            for variant, settings in of_model.get("variants", {}).items():
                assert variant in VARIANTS
                yield name, settings


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_known_keys_only(preset: Preset) -> None:
    document = preset_document(preset)
    general: dict[str, type[BaseModel]] = {
        "dvib": DvibConfig,
        "robust": RobustConfig,
        "training": TrainingConfig,
        "data": DataOptions,
    }
    assert set(document) <= {*general, "models", "datasets", "extends"}
    for name, scope in scopes(preset):
        schemas = general if name is None else {**general, "model": model_class(name).Config}
        assert set(scope) <= {*schemas, "models", "variants", "datasets", "extends"}
        for section, schema in schemas.items():
            assert set(scope.get(section, {})) <= set(schema.model_fields), (name, section)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_a_preset_spells_out_every_setting(preset: Preset) -> None:
    assert set(preset_document(preset)["models"]) == set(MODELS)
    for name in MODELS:
        for variant in VARIANTS:
            said = preset_settings(name, "unheard-of", variant, preset)
            found = [f"{section}.{key}" for section, settings in said.items() for key in settings]
            assert sorted(found) == sorted(known_keys(name))  # no default without a source


def test_the_paper_preset_says_what_the_schemas_default_to() -> None:
    def plain(value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    document = preset_document("paper")
    schemas: dict[str, type[BaseModel]] = {
        "dvib": DvibConfig,
        "robust": RobustConfig,
        "training": TrainingConfig,
        "data": DataOptions,
    }
    for section, schema in schemas.items():
        known = schema().model_dump()
        for name, leaf in document[section].items():
            assert (section, name, plain(leaf["value"])) == (section, name, known[name])
    for model_name, scope in document["models"].items():
        known = model_class(model_name).Config().model_dump()
        for name, leaf in scope["model"].items():
            assert (model_name, name, plain(leaf["value"])) == (model_name, name, known[name])


def test_tuned_says_what_paper_says_where_nothing_was_tuned() -> None:
    for name in MODELS:
        for variant in VARIANTS:
            tuned, paper = (
                build(model_name=name, variant=variant, preset=preset, dataset="unheard-of")
                for preset in ("tuned", "paper")
            )
            assert tuned.model_copy(update={"preset": "paper"}) == paper
    # And what it does say wins over everything of the paper's, however particular.
    assert build(preset="tuned", dataset="ml-100k").model["regularisation"] == 1.5
    assert build(preset="paper", dataset="ml-100k").model["regularisation"] == 0.01
    assert {build(preset=preset, dataset="ml-100k").data.min_rating for preset in PRESETS} == {4.0}


def test_the_reference_preset_differs_as_specified() -> None:
    dvib = build(preset="reference").dvib
    assert (dvib.divergence, dvib.distil_on, dvib.rows, dvib.mix) == ("ref_entropy", "scores", "all", "convex")
    assert (dvib.regulariser, dvib.prior, dvib.gamma_r, dvib.decay_both) == ("kl_std", 0.5, 0.001, True)
    training = build(preset="reference").training
    assert (training.monitor_decimals, training.patience) == (4, 21)
    assert (dvib.candidates, dvib.perturbed_terms, dvib.entropy, dvib.noise) == ("all", None, 0.0, "gaussian")


def test_the_reference_preset_has_the_authors_places_and_flaws_per_model() -> None:
    def reference(model_name: str, variant: Variant = "adaptive") -> RunConfig:
        return build(model_name=model_name, variant=variant, preset="reference")

    mmgcn, grcn = reference("mmgcn"), reference("grcn")
    assert (mmgcn.model["inject_at"], mmgcn.model["train_tables"], grcn.model["routing"]) == ("input", False, "none")
    assert mmgcn.training.rank_before_last_step
    assert grcn.training.rank_before_last_step
    assert not reference("vbpr").training.rank_before_last_step
    sites = [reference("grcn", variant).model["inject_at"] for variant in ("constant", "adaptive")]
    assert sites == ["edges", "content"]
    assert reference("freedom").model["inject_at"] == "projected"
    for name in ("freedom", "bm3"):
        dvib = reference(name).dvib
        assert (dvib.distil_on, dvib.perturbed_terms) == ("features", ("modalities",))
    dead, alive = reference("bm3", "constant"), reference("bm3")
    assert (dead.dvib.mix, dead.dvib.gamma_d, dead.model["id_noise"]) == ("add", 0.0, 0.0)
    assert (alive.dvib.mix, alive.dvib.gamma_d, alive.model["id_noise"]) == ("convex", 0.1, 0.01)
    assert (alive.dvib.net_phi, alive.dvib.decay_both) == ("shared", False)
    assert {reference(name).dvib.distil_on for name in ("selfcf", "layergcn")} == {"features"}


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
        ("dvib.prior=.inf", r"dvib\.prior: .*finite"),
        ("dvib.sigma=", r"dvib\.sigma: .*None"),
        ("model.dimension=0", r"model\.dimension: .*greater than or equal to 1, got 0"),
        ("model.regularisation=x", r"model\.regularisation: .*'x'"),
        ("data.split=alphabetical", r"data\.split: "),
        (
            "data.feature_scaling=l2",
            r"data\.feature_scaling: .*'none', 'global' or 'per_dimension'.*'l2'",
        ),
        ("dvib.divergence=kl", r"dvib\.divergence: .*'js', 'kl_forward', 'kl_reverse' or 'ref_entropy'.*'kl'"),
        ("dvib.perturbed_terms=[]", r"dvib\.perturbed_terms: .*at least 1"),
        ("dvib.entropy=-1", r"dvib\.entropy: "),
        ("training.seed=true", r"training\.seed: a number is wanted, got True"),
        ("training.learning_rate=yes", r"training\.learning_rate: a number is wanted, got True"),
        ("training.monitor_decimals=on", r"training\.monitor_decimals: a number is wanted, got True"),
        ("dvib.net_phi_hidden=[8, true]", r"dvib\.net_phi_hidden: a number is wanted, got True"),
        ("model.dimension=true", r"model\.dimension: a number is wanted, got True"),
        ("data.min_rating=false", r"data\.min_rating: a number is wanted, got False"),
        ("robust.mg_ascent=true", r"robust\.mg_ascent: a number is wanted, got True"),
        ("dvib.mix=true", r"dvib\.mix: .*'add' or 'convex'.*True"),
    ],
)
def test_bad_settings_name_the_key_and_the_value(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dvib.noise=dropout", "dvib.sigma=1.5"), r"^dvib\.noise=dropout takes dvib\.sigma for a rate.*got 1\.5"),
        (("dvib.mix=convex", "dvib.gamma_d=1.5"), r"^dvib\.mix=convex takes dvib\.gamma_d for a share.*got 1\.5"),
        (("dvib.rows=all", "dvib.sampled_items=5"), r"^dvib\.sampled_items=5 adds nothing to dvib\.rows=all"),
    ],
)
def test_settings_that_do_not_go_together_are_both_named(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(*overrides, variant="constant")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


def test_a_rate_above_one_matters_to_constant_dropout_only() -> None:
    assert build("dvib.noise=dropout", "dvib.sigma=1", variant="constant").dvib.sigma == 1
    assert build("dvib.noise=dropout", "dvib.sigma=2", variant="adaptive").dvib.sigma == 2
    assert build("dvib.noise=uniform", "dvib.sigma=2", variant="constant").dvib.sigma == 2


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
        ("data.feature_scaling=global", "global"),
        ("dvib.perturbed_terms=[bpr]", ("bpr",)),
        ("dvib.perturbed_terms=null", None),
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
    with pytest.raises(ConfigError, match=r"dvib\.variant is chosen by --dvib.*; pass --dvib adaptive$"):
        build("dvib.variant=adaptive", variant="none")
    with pytest.raises(ConfigError, match=r"; pass --dvib none, constant or adaptive$"):
        build("dvib.variant=both", variant="none")


def test_particular_settings_win_over_general_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [("dvib", name) for name in ("sigma", "gamma_0", "gamma_d", "gamma_r", "prior")]
    keys += [("training", "seed"), ("training", "patience")]

    def settings(level: int, scale: int = 1) -> dict[str, dict[str, Any]]:
        """Each level sets its own key and those of all levels after it, so that the order is seen."""
        result: dict[str, dict[str, Any]] = {"dvib": {}, "training": {}}
        for section, name in keys[level - 1 :]:
            result[section][name] = {"value": scale * level, "source": f"level {level}"}
        return result

    def of_model(level: int) -> dict[str, Any]:
        variants = {"constant": settings(level + 1), "adaptive": settings(1, 99)}
        return {"vbpr": {**settings(level), "variants": variants}, "other": settings(1, 99)}

    document = {
        **settings(1),
        "models": of_model(2),
        "datasets": {"toy": {**settings(4), "models": of_model(5)}, "elsewhere": settings(1, 99)},
    }
    monkeypatch.setattr(module, "preset_document", lambda _: document)
    built = build("training.patience=7", variant="constant")
    assert [getattr(getattr(built, section), name) for section, name in keys] == [1, 2, 3, 4, 5, 6, 7]
    assert build("training.patience=7", variant="constant", dataset="unheard-of").training.seed == 3
    assert build("training.patience=7", variant="none").training.seed == 5
    # What a file extends comes before all of it: its general settings win over particular ones of the other's.
    extending = {"extends": "base", "training": {"seed": {"value": 42, "source": "extending"}}}
    monkeypatch.setattr(module, "preset_document", lambda name: document if name == "base" else extending)
    assert build(variant="constant").training.seed == 42
    assert [getattr(build(variant="constant").dvib, name) for _, name in keys[:5]] == [1, 2, 3, 4, 5]


def test_a_preset_with_an_unknown_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = {"value": 1, "source": "nowhere"}
    monkeypatch.setattr(module, "preset_document", lambda _: {"dvib": {"gamma_x": leaf}})
    with pytest.raises(ConfigError, match=r"preset paper: unknown key 'dvib\.gamma_x'; did you mean 'dvib\.gamma_"):
        build()


def test_a_preset_with_a_value_without_a_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for leaf in (1, {"value": 1}, {"source": "nowhere"}, {"value": 1, "source": None}):
        document = {"dvib": {"gamma_d": leaf}}
        monkeypatch.setattr(module, "preset_document", lambda _, document=document: document)
        with pytest.raises(ConfigError, match=r"preset paper: dvib\.gamma_d: wanted \{value: \.\.\., source"):
            build()


def test_known_keys_cover_all_sections() -> None:
    keys = known_keys("vbpr")
    assert {"model.dimension", "dvib.gamma_0", "training.seed", "data.k_core"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_configurations_are_immutable() -> None:
    built = build()
    with pytest.raises(ValueError, match="frozen"):
        built.training.seed = 3
