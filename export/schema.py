"""JSON Schemas of what a bundle says of itself, for readers that are not this program.

The models in `export.bundle` and `export.certificate` are the source; ``python -m export.schema`` writes the files in
``export/schemas`` anew, and a test fails while they differ. A file's name carries the version that its schema is of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from export import certificate
from export.manifest import SCHEMA_VERSION, Manifest

FOLDER = Path(__file__).parent / "schemas"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _WithoutTitles(GenerateJsonSchema):
    """Pydantic would repeat each field's name as its title."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False


def schemas() -> dict[str, dict[str, Any]]:
    """Return file name → JSON Schema: of ``manifest.json`` and of ``certificate.json``."""
    return {
        f"bundle-{SCHEMA_VERSION}.json": _schema(Manifest, SCHEMA_VERSION),
        f"certificate-{certificate.SCHEMA_VERSION}.json": _schema(certificate.Certificate, certificate.SCHEMA_VERSION),
    }


def text(schema: dict[str, Any]) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _schema(model: type[BaseModel], version: int) -> dict[str, Any]:
    schema = model.model_json_schema(schema_generator=_WithoutTitles)
    name = model.model_fields["schema_name"].default
    # A document of another version is for another schema, and every document says which it is for.
    schema["properties"]["schema_version"] = {"const": version}
    schema["required"] = ["schema_name", "schema_version", *schema["required"]]
    return {"$schema": _DIALECT, "$id": f"urn:{name}:{version}".replace(".", ":"), **schema}


def main() -> None:
    """Write the files."""
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text(schema), "utf-8")


if __name__ == "__main__":
    main()
