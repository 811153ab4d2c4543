"""Requests that schemathesis makes up from the service's OpenAPI document, sent to a server and checked."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.http.asked import LISTS, PARAMETERS
from service.http.schemas import ErrorReply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from schemathesis import APIOperation, Case, Response

    from tests.helpers_bundle import Content

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]
JSON = "application/json"


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


_TYPES: dict[str, Callable[[str], Any]] = {
    "k": _number,
    "limit": _number,
    "min_score": float,
    "exclude_seen": "true".__eq__,
}
"""How the parameters of an address are read."""


@dataclass
class Fuzz:
    """Sends cases, checks the replies against a document and against each other, and counts.

    Attributes:
        url: Of the server.
        document: Its OpenAPI document, by which replies are judged.
        statuses: How often which operation replied which status.
        distinct: Every request that was sent: method, address and body.
    """

    url: str
    document: Mapping[str, Any]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    distinct: set[tuple[str | None, str | None, Any]] = field(default_factory=set)
    _session: requests.Session = field(default_factory=requests.Session)

    def operations(self, document: Mapping[str, Any]) -> Iterator[APIOperation[Any, Any, Any, Any]]:
        """Yield the operations of a document."""
        for result in schemathesis.openapi.from_dict(copy.deepcopy(dict(document))).get_all_operations():
            assert isinstance(result, Ok)
            yield result.ok()

    def send(self, case: Case[Any]) -> Response:
        """Send a case and check the reply by what the document says.

        Raises:
            AssertionError: It is not as documented.
        """
        reply = case.call(base_url=self.url, session=self._session)
        self.statuses[case.operation.label, reply.status_code] += 1
        sent = reply.request
        self.distinct.add((sent.method, sent.url, sent.body))
        case.validate_response(reply, checks=CHECKS)
        assert re.fullmatch("[A-Za-z0-9._-]{1,64}", reply.headers["x-request-id"][0])
        if reply.status_code >= 400 and sent.method != "HEAD":
            self._check_error(case, reply)
        return reply

    def _check_error(self, case: Case[Any], reply: Response) -> None:
        error = ErrorReply.model_validate_json(reply.content, strict=True).error
        if reply.status_code == 405:
            assert error.code == "method_not_allowed"
            return
        operation = self.document["paths"][case.operation.path][case.operation.method]
        examples = operation["responses"][str(reply.status_code)]["content"][JSON]["examples"]
        assert error.code in examples, f"{case.operation.label} does not document {error.code}"
        if case.meta is not None and case.meta.generation.mode.is_positive and reply.status_code != 404:
            assert error.code in excuses(case, reply, self._limits()), f"{error.code}: {sent_by(case, reply)}"

    def _limits(self) -> int:
        found: int = self.document["paths"]["/items/{item_id}/similar"]["get"]["parameters"][0]["schema"]["maxLength"]
        return found

    def boundaries(self, operation: APIOperation[Any, Any, Any, Any]) -> None:
        """Send what lies on either side of every limit of an operation, and methods and types that it does not take."""
        schema = operation.schema
        config = schema.config.generation_for(operation=operation, phase="coverage")
        for case in schema.iter_coverage_cases(
            operation, generation_modes=list(GenerationMode), generation_config=config
        ):
            self.send(case)

    def explore(
        self,
        operation: APIOperation[Any, Any, Any, Any],
        mode: GenerationMode,
        examples: int,
        check: Callable[[Case[Any], Response], None] | None = None,
    ) -> None:
        """Send cases at random, always the same ones; the first that fails is not made smaller."""

        @seed(6)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def one(case: Case[Any]) -> None:
            reply = self.send(case)
            if check is not None:
                check(case, reply)

        one()


def sent_by(case: Case[Any], reply: Response) -> list[dict[str, Any]]:
    """Return the questions that were sent, by name; what is left out is missing."""
    body = _in_body(case)
    if "requests" in body:
        return [_given(question) for question in body["requests"]]
    in_path = {name: unquote(value) for name, value in (case.path_parameters or {}).items()}
    return [_in_address(reply) | body | in_path]


def _in_address(reply: Response) -> dict[str, Any]:
    given = parse_qs(urlsplit(str(reply.request.url)).query, keep_blank_values=True)
    return {name: values if name in LISTS else _TYPES.get(name, str)(values[0]) for name, values in given.items()}


def _in_body(case: Case[Any]) -> dict[str, Any]:
    body: Any = case.body
    return _given(body) if isinstance(body, dict) else {}


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def excuses(case: Case[Any], reply: Response, max_id_bytes: int) -> set[str]:
    """Return why a case that fits the document may be refused all the same: what no schema can say."""
    found: set[str] = set()
    questions = sent_by(case, reply)
    if _in_address(reply).keys() & _in_body(case).keys():
        found.add("repeated_parameter")
    for question in questions:
        ids = [
            question.get("user_id"),
            question.get("item_id"),
            *(one for name in LISTS for one in question.get(name, ())),
        ]
        if any(isinstance(one, str) and len(one.encode("utf-8", "replace")) > max_id_bytes for one in ids):
            found.add("id_too_long")
        if "user_id" not in question:
            found.add("missing_user_id")
        if "category" in question:
            found.add("unknown_category")
        if isinstance(question.get("k"), float):
            found.add("invalid_k")  # to a schema, 5.0 is a whole number
    return found


def informed(document: Mapping[str, Any], content: Content, *, limits: bool = False) -> dict[str, Any]:
    """Return a document in which ids, categories and models are such as the service knows, but for some.

    Whatever fits it has an answer.

    Args:
        document: Of the service.
        content: What it knows.
        limits: Leave what has a limit as it is: it is met only where nothing else is wrong.
    """
    names = content.item_ids[:12]
    values: dict[str, list[Any]] = {
        "user_id": [*content.user_ids, "nobody", "новый"],
        "item_id": content.item_ids,
        "name": ["toy"],
        "k": [1, 3, 50],
        "limit": [1, 3, 50],
        "model": ["toy"],
        "category": list(content.categories.names if content.categories else ()),
        "min_score": [-1.5, 0, 1.25, 4],
        **{name: [*names, "none such"] for name in ("exclude", "allow", "history")},
    }

    def narrow(name: str, schema: dict[str, Any], place: str = "body") -> dict[str, Any]:
        if name not in values or (limits and place != "path" and name not in {"category", "model"}):
            return schema
        if "items" in schema:
            return schema | {"items": {"type": "string", "enum": values[name]}}
        nullable = isinstance(schema["type"], list)
        return {"type": schema["type"], "enum": [*values[name], *([None] if nullable else [])]}

    known = copy.deepcopy(dict(document))
    for path in known["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = narrow(parameter["name"], parameter["schema"], parameter["in"])
    recommend, batch = (known["paths"][path]["post"] for path in ("/recommend", "/recommend/batch"))
    of_batch = batch["requestBody"]["content"][JSON]["schema"]["properties"]["requests"]["items"]
    for question in (recommend["requestBody"]["content"][JSON]["schema"], of_batch):
        question["properties"] = {name: narrow(name, schema) for name, schema in question["properties"].items()}
    return known


def ways(known: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield documents in which the parameters of a recommendation come in the address, in the body and in both."""
    for in_query in (PARAMETERS, (), PARAMETERS[:5], PARAMETERS[5:]):
        way = copy.deepcopy(dict(known))
        way["paths"] = {"/recommend": way["paths"]["/recommend"]}
        operation = way["paths"]["/recommend"]["post"]
        operation["parameters"] = [
            parameter | {"required": parameter["name"] == "user_id"}
            for parameter in operation["parameters"]
            if parameter["name"] in in_query
        ]
        schema = operation["requestBody"]["content"][JSON]["schema"]
        schema["properties"] = {name: one for name, one in schema["properties"].items() if name not in in_query}
        if "user_id" in schema["properties"]:
            schema["required"] = ["user_id"]
            schema["properties"]["user_id"] = operation_ids(known)
            operation["requestBody"]["required"] = True
        if not schema["properties"]:
            del operation["requestBody"]
        else:
            del operation["requestBody"]["content"][JSON]["examples"]
        yield way


def operation_ids(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a user's id that is needed."""
    parameters = known["paths"]["/recommend"]["post"]["parameters"]
    schema: dict[str, Any] = next(one["schema"] for one in parameters if one["name"] == "user_id")
    return schema
