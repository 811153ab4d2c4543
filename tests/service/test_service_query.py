"""Query strings are read as the standard library splits them, and each value as its parameter's type says."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.http.asked import LISTS, PARAMETERS, Asked
from service.http.errors import Refusal
from service.http.query import QueryReader, parameters
from service.http.schemas import ErrorCode
from service.settings import Settings
from service.values import Request

LIMITS = Settings(default_k=7, max_k=50, max_id_bytes=20, max_filter_ids=3, max_history=2)
READ = QueryReader(LIMITS)


def code_of(query: bytes) -> ErrorCode | None:
    found = READ(query)
    return found.code if isinstance(found, Refusal) else None


def reference(query: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if name in PARAMETERS:
            found.setdefault(name, []).append(value)
    return found


def check(query: str) -> None:
    """Compare with the standard library, and refusals with what the types say."""
    found, wanted = parameters(query.encode()), reference(query)
    repeated = {name for name, values in wanted.items() if name not in LISTS and len(values) > 1}
    if isinstance(found, Refusal):
        bad = {
            ErrorCode.REPEATED_PARAMETER: bool(repeated),
            ErrorCode.INVALID_K: any(not re.fullmatch("[0-9]{1,9}", text) for text in wanted.get("k", [])),
            ErrorCode.INVALID_FLAG: any(
                text.lower() not in {"true", "false"} for text in wanted.get("exclude_seen", [])
            ),
            ErrorCode.INVALID_SCORE: any(not _is_number(text) for text in wanted.get("min_score", [])),
        }
        assert bad[found.code], query
        return
    assert not repeated, query
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        texts = wanted[name]
        expected: Any = texts if name in LISTS else texts[0]
        if name == "k":
            expected = int(expected)
        elif name == "exclude_seen":
            expected = expected.lower() == "true"
        elif name == "min_score":
            expected = float(expected)
        assert value == expected, query


def _is_number(text: str) -> bool:
    """JSON's grammar, but for leading zeros."""
    return re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII) is not None


NUMBERS = ("1", "50", "0", "51", "-1", "+5", " 5", "5 ", "5.0", "1e1", "0x5", "1_0", "", "007", "٥", "²", "9" * 5000)
NAMES = ("u", "user_id", "é", "a b", "a+b", "a&b=c", "\0", "x" * 21, "", "日本", "\ufffd", "%zz")


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers(number: str) -> None:
    right = number in {"1", "50", "007"}
    text = quote(number)
    assert code_of(f"user_id=u&k={text}".encode()) is (None if right else ErrorCode.INVALID_K)
    check(f"user_id=u&k={text}")
    check(f"user_id=u&min_score={text}")
    check(f"user_id=u&K={text}")


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    text = quote(name)
    for query in (
        f"user_id={text}",
        f"user_id={text}&model={text}",
        f"user%5Fid={text}&k=2",
        f"exclude={text}&exclude=a",
    ):
        check(query)
    found = READ(f"user_id={text}".encode())
    fits = bool(name) and "\0" not in name and len(name.encode()) <= 20
    assert (found == Asked(Request(name, 7), None)) == fits


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from("&=+;%?# au1k")
        | st.sampled_from(
            [*(f"{name}=" for name in PARAMETERS), "%20", "%C3%A9", "%ff", "&k=5", "&exclude=", "true", "-1.5e3"]
        )
    )
)
def test_any_query(parts: list[str]) -> None:
    check("".join(parts).replace("#", "%23").replace(" ", "%20"))


@settings(max_examples=200, deadline=None)
@given(st.binary())
def test_any_bytes_are_read_or_refused(query: bytes) -> None:
    found = READ(query)
    assert isinstance(found, Asked | Refusal)


def test_raw_utf8_is_text() -> None:
    assert READ("user_id=Zoë".encode()) == Asked(Request("Zoë", 7), None)
    assert code_of(b"user_id=Zo\xeb") is ErrorCode.INVALID_ID


def test_every_parameter() -> None:
    query = b"user_id=u&k=3&model=m&exclude_seen=False&exclude=a&exclude=b%2Cc&allow=d&category=x+y&min_score=-1.5"
    wanted = Request("u", 3, False, ("a", "b,c"), ("d",), "x y", -1.5, ("e",))
    assert READ(query + b"&history=e") == Asked(wanted, "m")
    assert READ(b"user_id=u") == Asked(Request("u", 7), None)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"", ErrorCode.MISSING_USER_ID),
        (b"k=3", ErrorCode.MISSING_USER_ID),
        (b"USER_ID=u", ErrorCode.MISSING_USER_ID),
        (b"&&", ErrorCode.MISSING_USER_ID),
        (b"user_id", ErrorCode.INVALID_ID),
        (b"user_id=%ff", ErrorCode.INVALID_ID),
        (b"user_id=%ED%A0%80", ErrorCode.INVALID_ID),
        (b"user_id=a%C3&k=2", ErrorCode.INVALID_ID),
        (b"user_id=u&history=%00", ErrorCode.INVALID_ID),
        (b"user_id=" + b"x" * 21, ErrorCode.ID_TOO_LONG),
        (b"user_id=u&allow=" + b"%C3%A9" * 11, ErrorCode.ID_TOO_LONG),
        (b"user_id=u&exclude=a&exclude=b&exclude=c&exclude=d", ErrorCode.TOO_MANY_IDS),
        (b"user_id=u&history=a&history=b&history=c", ErrorCode.TOO_MANY_IDS),
        (b"user_id=u&min_score=1e999", ErrorCode.INVALID_SCORE),
        (b"user_id=u&min_score=NaN", ErrorCode.INVALID_SCORE),
        (b"user_id=u&min_score=", ErrorCode.INVALID_SCORE),
        (b"user_id=u&exclude_seen=1", ErrorCode.INVALID_FLAG),
        (b"user_id=a&user_id=a", ErrorCode.REPEATED_PARAMETER),
        (b"user_id=a&category=a&category=b", ErrorCode.REPEATED_PARAMETER),
    ],
)
def test_refusals(query: bytes, code: ErrorCode) -> None:
    assert code_of(query) is code


def test_limits_are_inclusive() -> None:
    assert code_of(b"user_id=" + b"x" * 20 + b"&k=50&history=a&history=b&exclude=a&exclude=b&exclude=c") is None
    found = READ(b"user_id=u&min_score=1e308")
    assert isinstance(found, Asked)
    assert math.isfinite(found.request.min_score or math.nan)
