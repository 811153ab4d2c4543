"""The service does what its OpenAPI document says, whatever is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from schemathesis import GenerationMode

from service.values import Request
from tests.service.fuzzing import Fuzz, informed, sent_by, ways
from tests.service.processes import tree
from tests.service.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemathesis import Case, Response

    from tests.helpers_bundle import Content
    from tests.service.processes import Server, StartServer

LIMITS = {
    "DVIB_SERVE_DEFAULT_K": "7",
    "DVIB_SERVE_MAX_K": "50",
    "DVIB_SERVE_MAX_ID_BYTES": "64",
    "DVIB_SERVE_MAX_FILTER_IDS": "12",
    "DVIB_SERVE_MAX_HISTORY": "6",
    "DVIB_SERVE_MAX_REQUESTS": "4",
}
"""Low ones, so that what is drawn lies on both sides of them."""
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
EXAMPLES = {
    "POST /recommend": {POSITIVE: 200, NEGATIVE: 60},
    "POST /recommend/batch": {POSITIVE: 80, NEGATIVE: 30},
    "GET /items": {POSITIVE: 80, NEGATIVE: 30},
    "GET /items/{item_id}/similar": {POSITIVE: 200, NEGATIVE: 40},
    "GET /users/{user_id}/history": {POSITIVE: 200, NEGATIVE: 40},
}
"""Cases that fit the document and cases that do not, of the operations that take something that can be wrong."""


@pytest.fixture(scope="module")
def server(serve: StartServer, folder: Path) -> Iterator[Server]:
    with serve("--bundle", f"toy={folder}", "--port", "0", **LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


def labels(document: dict[str, Any]) -> set[str]:
    """Return the operations of a document."""
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


def test_whatever_is_sent_gets_a_documented_reply(server: Server, document: dict[str, Any], content: Content) -> None:
    before = [process.pid for process in tree(server)]
    fuzz = Fuzz(server.url, document)
    for operation in fuzz.operations(document):
        fuzz.boundaries(operation)
        for mode, examples in EXAMPLES.get(operation.label, {POSITIVE: 40}).items():
            fuzz.explore(operation, mode, examples)
    known = informed(document, content, limits=True)
    for way in (known, *ways(known)):
        for operation in fuzz.operations(way):
            fuzz.boundaries(operation)
    assert {label for label, _ in fuzz.statuses} == labels(document)
    assert labels(document) > EXAMPLES.keys()
    assert len(fuzz.distinct) >= 2000, len(fuzz.distinct)
    for label in EXAMPLES:
        assert fuzz.statuses[label, 422] >= 20, label
    assert not [status for _, status in fuzz.statuses if status >= 500]
    assert [process.pid for process in tree(server)] == before


def test_whatever_is_asked_properly_is_answered_rightly(
    server: Server, document: dict[str, Any], content: Content
) -> None:
    """With ids that there are, every case that fits the document gets the answer of the brute force."""
    fuzz, reference = Fuzz(server.url, document), Reference(content)
    histories = {name: content.seen[row] for row, name in enumerate(content.user_ids)}

    def recommended(case: Case[Any], reply: Response) -> None:
        assert reply.status_code == 200, reply.text
        questions = sent_by(case, reply)
        replies = reply.json()["replies"] if case.operation.path.endswith("batch") else [reply.json()]
        assert len(replies) == len(questions)
        for question, one in zip(questions, replies, strict=True):
            question.pop("model", None)
            request = Request(**{"k": int(LIMITS["DVIB_SERVE_DEFAULT_K"]), **question})
            items = [(item["item_id"], item["score"]) for item in one["items"]]
            assert (one["source"], items) == reference.answer(request), question
            assert one["user_id"] == request.user_id

    def similar(case: Case[Any], reply: Response) -> None:
        assert reply.status_code == 200, reply.text
        (question,) = sent_by(case, reply)
        items = [(item["item_id"], item["score"]) for item in reply.json()["items"]]
        wanted = reference.similar(question["item_id"], question.get("k", int(LIMITS["DVIB_SERVE_DEFAULT_K"])))
        assert [score for _, score in items] == pytest.approx([score for _, score in wanted])
        assert question["item_id"] not in {name for name, _ in items}

    def history(case: Case[Any], reply: Response) -> None:
        (question,) = sent_by(case, reply)
        seen = histories.get(question["user_id"])
        assert reply.status_code == (404 if seen is None else 200), reply.text
        if seen is not None:
            names = [content.item_ids[row] for row in seen]
            found = [item["item_id"] for item in reply.json()["items"]]
            assert found == names[: question.get("limit", int(LIMITS["DVIB_SERVE_MAX_K"]))]

    known = informed(document, content)
    for way in ways(known):
        for operation in fuzz.operations(way):
            fuzz.explore(operation, POSITIVE, 80, recommended)
    checks = {"/recommend/batch": recommended, "/items/{item_id}/similar": similar, "/users/{user_id}/history": history}
    for operation in fuzz.operations(known):
        if operation.path != "/recommend":
            fuzz.explore(operation, POSITIVE, 60, checks.get(operation.path))
    assert {label for label, status in fuzz.statuses if status == 200} == labels(document)
    assert len(fuzz.distinct) >= 400, len(fuzz.distinct)
