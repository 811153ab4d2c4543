"""Query strings are read and refused as FastAPI's own validation would, which is the reference here."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from service.http.query import Asked, QueryReader
from service.http.schemas import ErrorCode
from service.settings import Settings
from tests.service.in_process import in_process

LIMITS = Settings(default_k=7, max_k=50, max_id_bytes=20)
READ = QueryReader(LIMITS)


def reference() -> FastAPI:
    """An application that lets FastAPI read the parameters, and replies what it has read."""
    app = FastAPI()

    @app.post("/recommend")
    async def recommend(
        user_id: str = Query(), k: int = Query(LIMITS.default_k, ge=1, le=LIMITS.max_k), model: str | None = Query(None)
    ) -> list[object]:
        return [user_id, k, model]

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return Response(str(error.errors()[0]["loc"][-1]), status_code=422)

    return app


def read_by_fastapi(queries: list[str]) -> list[object]:
    found: list[object] = []

    async def ask(client: httpx.AsyncClient) -> None:
        for query in queries:
            reply = await client.post(f"/recommend?{query}")
            found.append(reply.json() if reply.status_code == 200 else reply.text)

    in_process(reference(), ask, started=False)
    return found


def check(queries: list[str]) -> None:
    for query, wanted in zip(queries, read_by_fastapi(queries), strict=True):
        found = READ(query.encode())
        match found:
            case ErrorCode.MISSING_USER_ID:
                assert wanted == "user_id", query
            case ErrorCode.INVALID_K:
                assert wanted == "k", query
            case ErrorCode.INVALID_ID | ErrorCode.ID_TOO_LONG:  # what FastAPI takes, and the service refuses
                assert isinstance(wanted, list), query
            case Asked():
                assert list(found) == wanted, query


NUMBERS = ("1", "50", "0", "51", "-1", "+5", " 5", "5 ", "5.0", "5.5", "1e1", "0x5", "1_0", "", "007", "٥", "9" * 5000)
NAMES = ("u", "user_id", "é", "a b", "a+b", "a&b=c", "\0", "x" * 21, "", "日本", "\ufffd", "%zz")


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers(number: str) -> None:
    check(
        [
            f"user_id=u&k={quote(number)}",
            f"k={quote(number)}",
            f"user_id=u&k={quote(number)}&k=3",
            f"user_id=u&K={number}",
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    text = quote(name)
    check([f"user_id={text}", f"user_id={text}&model={text}", f"user_id=a&user_id={text}", f"user%5Fid={text}&k=2"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from("&=+;%?# au1k") | st.sampled_from(["user_id=", "k=", "model=", "%20", "%C3%A9", "&k=5"]))
)
def test_any_query(parts: list[str]) -> None:
    query = "".join(parts).replace("#", "%23").replace(" ", "%20")
    check([str(httpx.URL(f"http://test/recommend?{query}").query, "ascii")])


@pytest.mark.parametrize("query", [b"", b"k=3", b"USER_ID=u", b"user_id", b"&&", b"model=m"])
def test_a_missing_id(query: bytes) -> None:
    wanted = ErrorCode.INVALID_ID if query == b"user_id" else ErrorCode.MISSING_USER_ID
    assert READ(query) is wanted


@pytest.mark.parametrize("query", [b"user_id=%ff", b"user_id=%ED%A0%80", b"user_id=a%C3&k=2", b"user_id=a&user_id=%fe"])
def test_an_id_that_is_no_utf8(query: bytes) -> None:
    assert READ(query) is ErrorCode.INVALID_ID


def test_what_is_refused_first() -> None:
    """A missing id before a wrong number, and that before an id that cannot be."""
    assert READ(b"k=x") is ErrorCode.MISSING_USER_ID
    assert READ(b"k=x&user_id=%ff") is ErrorCode.INVALID_K
    assert READ(b"user_id=" + b"x" * 20) == Asked("x" * 20, 7, None)
    assert READ(b"user_id=" + b"x" * 21) is ErrorCode.ID_TOO_LONG
