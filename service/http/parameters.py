"""The parameters of requests as OpenAPI shows them, in the address and in JSON bodies, with their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.http.asked import LISTS, PARAMETERS
from service.http.reply import JSON

if TYPE_CHECKING:
    from service.settings import Settings

_MEANINGS = {
    "user_id": "the data set's own id; an unknown user gets popular items, or what fits a history that is sent along",
    "k": "number of items, written without a decimal point",
    "model": "a name from /models; where left out, the one that answers this user",
    "exclude_seen": "leave out the user's training items and those of the history",
    "exclude": "ids of items to leave out; unknown ones change nothing",
    "allow": "ids of the only items to choose from; unknown ones add nothing",
    "category": "only items of this category, one of the model's in /models",
    "min_score": "leave out items of a lower score; for popular items, of fewer training interactions",
    "item_id": "ids of items; unknown ones are left out",
    "history": "ids of items that a user whom the model does not know has liked: the answer is ranked from them",
}
_NEEDED = "; needed, in the address or in the body"
_QUESTION = {"user_id": "196", "k": 5}
_OF_A_STRANGER = {"user_id": "a new user", "k": 5, "history": ["302", "50"], "exclude": ["1"]}

Schema = dict[str, Any]


class Parameters:
    """Schemas of parameters.

    Args:
        settings: Limits of a request.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        text: Schema = {"type": "string"}
        # Ids are limited in bytes, which no schema can say: of other letters than ASCII's, fewer fit.
        self.an_id: Schema = {**text, "minLength": 1, "maxLength": settings.max_id_bytes, "pattern": r"^[^\x00]*$"}
        most = dict.fromkeys(LISTS, settings.max_filter_ids) | {"history": settings.max_history}
        self._schemas: dict[str, Schema] = {
            "user_id": self.an_id,
            "k": {"type": "integer", "minimum": 1, "maximum": settings.max_k, "default": settings.default_k},
            "model": text,
            "exclude_seen": {"type": "boolean", "default": True},
            "category": {**text, "minLength": 1},
            "min_score": {"type": "number"},
            **{name: {"type": "array", "items": self.an_id, "maxItems": most[name]} for name in LISTS},
        }

    def query(self, *names: str) -> list[Schema]:
        """Return parameters of the query string."""
        return [
            {"name": name, "in": "query", "required": False, "schema": self._schemas[name]}
            | {"description": _MEANINGS[name] + (_NEEDED if name == "user_id" else "")}
            | ({"example": "196"} if name == "user_id" else {})
            for name in names
        ]

    def limit(self) -> Schema:
        """Return the parameter for the length of a list that is shown."""
        schema = {"type": "integer", "minimum": 1, "maximum": self._settings.max_k, "default": self._settings.max_k}
        return {"name": "limit", "in": "query", "schema": schema, "description": "most items to list"}

    def path(self, name: str, meaning: str, schema: Schema | None = None) -> Schema:
        """Return a parameter of the path."""
        schema = self.an_id if schema is None else schema
        return {"name": name, "in": "path", "required": True, "schema": schema, "description": meaning}

    def question(self, *required: str) -> Schema:
        """Return the schema of one question in JSON; null stands for what is left out."""
        properties: dict[str, Schema] = {}
        for name in PARAMETERS:
            schema = self._schemas[name]
            if name not in required:
                schema = schema | {"type": [schema["type"], "null"]}
            properties[name] = {**schema, "description": _MEANINGS[name]}
        return {
            "title": "Question",
            "type": "object",
            "properties": properties,
            "required": list(required),
            "additionalProperties": False,
        }

    def body(self) -> Schema:
        """Return the body of a request for recommendations."""
        examples = {"a user of ml-100k": _QUESTION, "one whom no model knows": _OF_A_STRANGER}
        return _body(self.question(), examples, required=False)

    def batch(self) -> Schema:
        """Return the body of a batch."""
        questions = {
            "type": "array",
            "items": self.question("user_id"),
            "minItems": 1,
            "maxItems": self._settings.max_requests,
        }
        schema = {
            "title": "Batch",
            "type": "object",
            "properties": {"requests": questions},
            "required": ["requests"],
            "additionalProperties": False,
        }
        return _body(schema, {"two users": {"requests": [_QUESTION, _OF_A_STRANGER]}}, required=True)


def _body(schema: Schema, examples: dict[str, Any], *, required: bool) -> Schema:
    media = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"required": required, "content": {JSON: media}}
