"""The JSON Schemas that are shipped: those of the models, and those of real bundles."""

from __future__ import annotations

import copy
import functools
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from export import bundle, schema
from export.certificate import Certificate
from export.manifest import Manifest
from tests.helpers_bundle import make_content, write_bundle

MODELS: dict[str, tuple[str, type[BaseModel]]] = {
    bundle.MANIFEST: ("bundle-2.json", Manifest),
    bundle.CERTIFICATE: ("certificate-2.json", Certificate),
}
DOCUMENTS = sorted(MODELS)


@functools.cache
def shipped(document: str) -> dict[str, Any]:
    """Return a schema as it lies in the package."""
    found: dict[str, Any] = json.loads(
        (Path(schema.__file__).parent / "schemas" / MODELS[document][0]).read_text("utf-8")
    )
    return found


@functools.cache
def validator(document: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(shipped(document))


def valid(document: str, content: object) -> bool:
    return validator(document).is_valid(content)


def readable(document: str, content: object) -> bool:
    """Whether the program's own reader takes it."""
    try:
        MODELS[document][1].model_validate_json(json.dumps(content), strict=True)
    except ValidationError:
        return False
    return True


def test_the_files_are_those_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m export.schema`` would change nothing."""
    files = {path.name: path.read_bytes() for path in schema.FOLDER.iterdir()}
    assert sorted(files) == sorted(name for name, _ in MODELS.values())
    monkeypatch.setattr(schema, "FOLDER", tmp_path)
    schema.main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_they_are_in_the_package() -> None:
    project = tomllib.loads((Path(schema.__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    assert "schemas/*.json" in project["tool"]["setuptools"]["package-data"]["export"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_they_are_schemas(document: str) -> None:
    jsonschema.Draft202012Validator.check_schema(shipped(document))
    assert shipped(document)["additionalProperties"] is False


def test_real_bundles_are_valid(adaptive_bundle: Path, baseline_bundle: Path, tmp_path: Path) -> None:
    for folder in (adaptive_bundle, baseline_bundle):
        for document in DOCUMENTS:
            jsonschema.Draft202012Validator(shipped(document)).validate(
                json.loads((folder / document).read_text("utf-8"))
            )
    write_bundle(tmp_path / "toy", make_content())
    assert valid(bundle.MANIFEST, json.loads((tmp_path / "toy" / bundle.MANIFEST).read_text("utf-8")))


def places(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every value of a document."""
    yield path
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in parts:
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[str | int, ...], edit: Callable[[Any, str | int], object]) -> Any:
    fresh = copy.deepcopy(content)
    inner = fresh
    for key in path[:-1]:
        inner = inner[key]
    edit(inner, path[-1])
    return fresh


def put(value: object) -> Callable[[Any, str | int], object]:
    return lambda inner, key: inner.__setitem__(key, value)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_schema_and_reader_agree(document: str, adaptive_bundle: Path) -> None:
    """Each value in turn left out, or replaced by one of every type: refused by both or by neither."""
    content = json.loads((adaptive_bundle / document).read_text("utf-8"))
    assert valid(document, content)
    assert readable(document, content)
    refused = 0
    for path in places(content):
        if not path or path[0] in {"schema_version", "schema_name"}:
            continue
        others = [
            changed(content, path, put(value)) for value in (None, True, -1, 1.5, "x", "\1", [], {}, [1], {"x": 1})
        ]
        others.append(changed(content, path, lambda inner, key: inner.pop(key)))
        if isinstance(path[-1], str):
            others.append(changed(content, path, lambda inner, key: inner.update({"another": inner[key]})))
        for other in others:
            assert valid(document, other) == readable(document, other), path
            refused += not valid(document, other)
    assert refused > 100


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize(("key", "value"), [("schema_version", 1), ("schema_version", "2"), ("schema_name", "x")])
def test_another_schema(document: str, key: str, value: object, adaptive_bundle: Path) -> None:
    content = json.loads((adaptive_bundle / document).read_text("utf-8"))
    assert not valid(document, content | {key: value})
    del content[key]
    assert not valid(document, content)
