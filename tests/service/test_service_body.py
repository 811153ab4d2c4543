"""JSON bodies: what they say is answered as the same query string is; anything else is refused, field by field."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Engine
from service.http.asked import PARAMETERS, Asked
from service.http.body import BodyReader, is_json, n_fields
from service.http.errors import Errors, Refusal
from service.http.query import QueryReader
from service.http.reading import BodyTooLongError, read_body
from service.http.schemas import BatchReply, ErrorCode
from service.settings import Settings
from tests.service.threaded import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers_bundle import Content

LIMITS = Settings(max_requests=4, max_body_bytes=200_000, max_filter_ids=50, max_history=20)
READ = BodyReader(LIMITS)
QUESTIONS: list[dict[str, Any]] = [
    {"user_id": "u-2"},
    {"user_id": "u-2", "k": 3, "exclude_seen": False},
    {"user_id": "u-4", "exclude": ["movie 1", "фильм 7", "none such"], "k": 60},
    {"user_id": "u-4", "allow": ["movie 1", "movie 2", "movie 3"]},
    {"user_id": "u-4", "allow": []},
    {"user_id": "nobody", "history": ["movie 1", "movie 2"]},
    {"user_id": "nobody", "category": "rare", "min_score": 1},
    {"user_id": "u-2", "category": "Children's", "min_score": -0.5, "model": "toy"},
    {"user_id": "Zoë 0/ü&=", "k": None, "model": None, "exclude": None},
]


JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with served({"toy": Engine.load(folder)}, LIMITS) as server, httpx.Client(base_url=server.url) as client:
        yield client


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_body_says_what_a_query_string_says(client: httpx.Client, question: dict[str, Any]) -> None:
    by_body = client.post("/recommend", json=question)
    assert by_body.status_code == 200, by_body.text
    given = {name: value for name, value in question.items() if value is not None and value != []}
    by_query = client.post(f"/recommend?{urlencode(given, doseq=True)}")
    if question.get("allow") == []:  # which no query string can say
        assert by_body.json()["items"] == []
    else:
        assert by_body.json() == by_query.json()
    without = {name: value for name, value in question.items() if name != "user_id"}
    by_both = client.post("/recommend", params={"user_id": question["user_id"]}, json=without)
    assert by_both.json() == by_body.json()


def test_a_batch_is_its_requests(client: httpx.Client) -> None:
    alone = [client.post("/recommend", json=question).json() for question in QUESTIONS[:4]]
    reply = client.post("/recommend/batch", json={"requests": QUESTIONS[:4]})
    assert reply.json() == {"replies": alone}
    BatchReply.model_validate(reply.json(), strict=True)


def test_a_batch_is_answered_whole_or_not_at_all(client: httpx.Client) -> None:
    reply = client.post("/recommend/batch", json={"requests": [QUESTIONS[0], {"user_id": "u-1", "k": 0}]})
    assert code(reply) == (422, "invalid_k")
    assert reply.json()["error"]["message"].startswith("requests[1]: ")
    reply = client.post("/recommend/batch", json={"requests": [QUESTIONS[0], {"user_id": "u-1", "model": "x"}]})
    assert code(reply) == (404, "unknown_model")
    assert reply.json()["error"]["message"].startswith("requests[1]: ")
    assert code(client.post("/recommend/batch", json={"requests": QUESTIONS[:5]})) == (
        422,
        "too_many_requests_in_batch",
    )


def test_the_longest_lists_are_answered(client: httpx.Client, content: Content) -> None:
    question = {"user_id": "u-2", "exclude": [f"none {n}" for n in range(50)], "k": 1000}
    assert client.post("/recommend", json=question).json() == client.post("/recommend?user_id=u-2&k=1000").json()
    long = {"user_id": "u-2", "exclude": ["é" * 128] * 50, "allow": ["é" * 128] * 50}  # read in a thread
    assert client.post("/recommend", json=long).json()["items"] == []
    padded = b'{"user_id":"u-2"' + b" " * 100_000 + b"}"
    reply = client.post("/recommend", content=padded, headers={"content-type": "application/json"})
    assert reply.json() == client.post("/recommend?user_id=u-2").json()


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({}, "missing_user_id"),
        ({"user_id": 196}, "invalid_body"),
        ({"user_id": ["u"]}, "invalid_body"),
        ({"user_id": ""}, "invalid_id"),
        ({"user_id": "a\0b"}, "invalid_id"),
        ({"user_id": "x" * 257}, "id_too_long"),
        ({"user_id": "u", "k": "5"}, "invalid_k"),
        ({"user_id": "u", "k": 5.0}, "invalid_k"),
        ({"user_id": "u", "k": True}, "invalid_k"),
        ({"user_id": "u", "k": 10**30}, "invalid_k"),
        ({"user_id": "u", "k": 0}, "invalid_k"),
        ({"user_id": "u", "exclude_seen": "true"}, "invalid_flag"),
        ({"user_id": "u", "exclude_seen": 1}, "invalid_flag"),
        ({"user_id": "u", "exclude": "movie 1"}, "invalid_body"),
        ({"user_id": "u", "exclude": {"a": 1}}, "invalid_body"),
        ({"user_id": "u", "exclude": ["a", 1]}, "invalid_body"),
        ({"user_id": "u", "exclude": ["a", None]}, "invalid_body"),
        ({"user_id": "u", "exclude": ["a", ""]}, "invalid_id"),
        ({"user_id": "u", "exclude": ["a"] * 51}, "too_many_ids"),
        ({"user_id": "u", "allow": ["a"] * 51}, "too_many_ids"),
        ({"user_id": "u", "history": ["a"] * 21}, "too_many_ids"),
        ({"user_id": "u", "history": ["é" * 129]}, "id_too_long"),
        ({"user_id": "u", "category": 3}, "invalid_body"),
        ({"user_id": "u", "category": "none"}, "unknown_category"),
        ({"user_id": "u", "min_score": "1"}, "invalid_score"),
        ({"user_id": "u", "min_score": True}, "invalid_score"),
        ({"user_id": "u", "model": 1}, "invalid_body"),
        ({"user_id": "u", "exlude": []}, "invalid_body"),
        ([], "invalid_body"),
        ("u", "invalid_body"),
        (None, "invalid_body"),
    ],
)
def test_wrong_bodies(client: httpx.Client, document: Any, wanted: str) -> None:
    body = json.dumps(document).encode()
    assert code(client.post("/recommend", content=body, headers=JSON)) == (422, wanted)
    if isinstance(document, dict):
        batch = client.post("/recommend/batch", content=b'{"requests":[' + body + b"]}", headers=JSON)
        assert code(batch) == (422, wanted)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b'{"user_id": "\xff"}',
        b'{"user_id": "u", "min_score": NaN}',
        b'{"user_id": "u", "min_score": Infinity}',
        b'{"user_id": "\\ud800"}',
        b"[" * 100_000,
        b'{"user_id":' * 10_000,
        b"\0",
        b" ",
        '{"user_id": "u"}'.encode("utf-16"),
    ],
)
def test_what_is_no_json(client: httpx.Client, body: bytes) -> None:
    for path in ("/recommend", "/recommend/batch"):
        assert code(client.post(path, content=body, headers=JSON)) == (422, "invalid_body")


def test_an_infinite_score_is_refused(client: httpx.Client) -> None:
    reply = client.post("/recommend", content=b'{"user_id": "u", "min_score": 1e999}', headers=JSON)
    assert code(reply)[0] == 422


@pytest.mark.parametrize("requests", [None, [], {}, "x", [1], [None], [[]]])
def test_wrong_batches(client: httpx.Client, requests: Any) -> None:
    assert code(client.post("/recommend/batch", json={"requests": requests})) == (422, "invalid_body")
    assert code(client.post("/recommend/batch", json={"requests": [QUESTIONS[0]], "more": 1})) == (422, "invalid_body")
    assert code(client.post("/recommend/batch", json={})) == (422, "invalid_body")


@pytest.mark.parametrize("name", PARAMETERS)
def test_given_twice(client: httpx.Client, name: str) -> None:
    """In the address and in the body: neither wins."""
    values: dict[str, Any] = {
        "k": 3,
        "exclude_seen": True,
        "min_score": 1,
        "exclude": ["a"],
        "allow": ["a"],
        "history": ["a"],
    }
    value = values.get(name, "u")
    text = urlencode({name: orjson.dumps(value).decode() if not isinstance(value, str | list) else value}, doseq=True)
    reply = client.post(f"/recommend?{text}", json={"user_id": "u", name: value})
    assert code(reply) == (422, "repeated_parameter")
    assert reply.json()["error"]["message"].startswith(name)


@pytest.mark.parametrize(
    ("content_type", "right"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("application/json; profile=x", False),
        ("text/json", False),
        ("application/jsonx", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("", False),
        (None, False),
    ],
)
def test_content_types(client: httpx.Client, content_type: str | None, right: bool) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    reply = client.post("/recommend", content=b'{"user_id":"u-2"}', headers=headers)
    assert reply.status_code == (200 if right else 415)
    if not right:
        assert code(reply) == (415, "unsupported_media_type")
    assert is_json((content_type or "").encode()) == right
    empty = client.post("/recommend?user_id=u-2", content=b"", headers=headers)
    assert empty.status_code == 200  # there is no body whose type could be wrong


def test_a_body_that_is_too_long(client: httpx.Client) -> None:
    fits = b'{"user_id":"u-2"' + b" " * (200_000 - 17) + b"}"
    assert client.post("/recommend", content=fits, headers=JSON).status_code == 200
    assert code(client.post("/recommend", content=fits + b" ", headers=JSON)) == (413, "body_too_long")
    for path in ("/recommend", "/recommend/batch", "/nowhere"):
        assert code(client.post(path, content=b"x" * 10_000_000, headers=JSON)) == (413, "body_too_long")
        chunks = (b"x" * 10_000 for _ in range(1000))
        assert code(client.post(path, content=chunks, headers=JSON)) == (413, "body_too_long")
    assert client.post("/recommend?user_id=u-2").status_code == 200


@pytest.mark.parametrize(("most", "fits"), [(29, False), (30, True)])
def test_all_parts_of_a_body_count(most: int, fits: bool) -> None:
    parts = [{"type": "http.request", "body": b"0123456789", "more_body": left > 0} for left in (2, 1, 0)]

    async def receive() -> Any:
        return parts.pop(0)

    if fits:
        assert asyncio.run(read_body(receive, most)) == b"0123456789" * 3
        return
    with pytest.raises(BodyTooLongError):
        asyncio.run(read_body(receive, most))


def test_messages_echo_nothing() -> None:
    """Every refusal's sentence is one of a fixed set: none holds what was sent."""
    errors = Errors(LIMITS)
    private = "PRIVATE"
    bodies: list[Any] = [
        {private: 1},
        {"user_id": private * 100},
        {"user_id": "u", "k": private},
        {"user_id": "u", "exclude": [private + "\0"]},
        {"user_id": "u", "category": [private]},
        private,
    ]
    for document in bodies:
        found = READ.one(orjson.dumps(document), b"")
        assert isinstance(found, Refusal)
        assert private.encode() not in errors.reply(found).body


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.text(max_size=3), max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*PARAMETERS, "other"]), VALUES))
def test_any_fields_are_read_as_they_are_or_refused(document: dict[str, Any]) -> None:
    try:
        body = orjson.dumps(document)
    except TypeError:  # a number or a text that JSON does not have
        return
    found = READ.one(body, b"")
    document = orjson.loads(body)
    if isinstance(found, Refusal):
        assert found.code in set(ErrorCode)
        return
    assert isinstance(found, Asked)
    given = {name: value for name, value in document.items() if value is not None}
    assert given.keys() <= set(PARAMETERS)
    assert found.model == given.pop("model", None)
    for name, value in given.items():
        answered = getattr(found.request, name)
        assert answered == (tuple(value) if isinstance(value, list) else value)
        assert not isinstance(value, bool) or name == "exclude_seen"
    query = urlencode(
        {name: ["false", "true"][value] if isinstance(value, bool) else value for name, value in given.items()},
        doseq=True,
    )
    if given.get("allow") != [] and found.model is None:
        assert QueryReader(LIMITS)(query.encode()) == found


DOCUMENTS = st.recursive(
    st.none() | st.integers() | st.text(alphabet='":\\\\{},a') | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='":\\\\ab'), inner, max_size=4),
)


def fields_of(document: object) -> int:
    if isinstance(document, dict):
        return len(document) + sum(map(fields_of, document.values()))
    return sum(map(fields_of, document)) if isinstance(document, list) else 0


@given(document=DOCUMENTS, spaced=st.booleans())
def test_fields_are_counted_without_reading_them(document: object, spaced: bool) -> None:
    body = json.dumps(document, indent=1 if spaced else None).encode()
    assert n_fields(body) == fields_of(document)


def test_a_body_of_very_many_fields_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    many = b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}"
    ids = json.dumps({"user_id": "u", "exclude": ["a:" * 20] * 1000}).encode()
    reader = BodyReader(Settings(max_requests=4, max_filter_ids=1000))
    asked = reader.one(ids, b"")
    assert not isinstance(asked, Refusal)
    assert len(asked.request.exclude) == 1000

    def read(_: bytes) -> Any:
        raise AssertionError("read all the same")

    monkeypatch.setattr(orjson, "loads", read)
    for refused in (reader.one(many, b""), reader.many(many)):
        assert isinstance(refused, Refusal)
        assert refused.code == "invalid_body"
