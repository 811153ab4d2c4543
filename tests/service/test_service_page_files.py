"""What the page is made of and what it asks for: files and their headers, items, example users, times."""

from __future__ import annotations

import re
import time
from importlib.resources import files
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from service.engine import Engine
from service.http.schemas import ItemsReply
from service.page.route import PATHS
from service.settings import Settings
from tests.helpers_bundle import make_content, write_bundle
from tests.service.threaded import KEY, Scripted, Threaded, engines_of, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers_bundle import Content

MOST_BYTES = 60_000
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Threaded]:
    with served({"toy": engine}, Settings(example_users=5)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Threaded) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_file_of_the_page(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-cache"
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "/": "text/html"}
    assert reply.headers["content-type"].split(";")[0] == kinds[path.rsplit(".", maxsplit=1)[-1]]
    tag = reply.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == reply.headers["content-security-policy"]
    for unknown in ('"other"', tag.strip('"'), ""):
        assert client.get(path, headers={"If-None-Match": unknown}).content == reply.content
    head = client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(reply.content)))
    assert client.post(path).status_code == 405


def test_the_page_is_light_and_asks_nobody_else(client: httpx.Client) -> None:
    bodies = [client.get(path).text for path in PATHS]
    assert sum(len(body.encode()) for body in bodies) <= MOST_BYTES
    written = " ".join(bodies).replace("http://www.w3.org/2000/svg", "")  # a name, and no address
    assert not re.search(
        r"https?:|url\(|@import|\binnerHTML|\bouterHTML|insertAdjacentHTML|document\.write|\beval\b", written
    )
    assert {file.name for file in files("service.page").iterdir() if not file.name.endswith("py")} - {
        "__pycache__"
    } == {path.rsplit("/", 1)[-1] or "index.html" for path in PATHS}
    # Everything is asked for relative to the page, so that it works behind a proxy that puts a folder before it.
    assert not re.search(r"""(href|src|fetch\()=?["'`(]/""", written)


def test_the_page_needs_no_key_and_what_it_asks_for_does(folder: Path) -> None:
    engine = Scripted(Engine.load(folder).manifest)
    engine.open.set()
    with (
        served(engines_of(m=engine), Settings(api_key=SecretStr(KEY))) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for path in PATHS:
            assert client.get(path).status_code == 200
        for path in ("/models", "/items?item_id=1", "/users/u/history", "/page", "/page/", "/page/route.py"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"X-Api-Key": KEY}).status_code != 401
        assert httpx.get(f"{server.url}//").status_code == 401
        assert client.get("/models", headers={"X-Server-Timing": "1"}).status_code == 401


def test_items_with_their_categories(client: httpx.Client, content: Content) -> None:
    assert content.categories is not None
    rows = [7, 0, 33, 7, 59]
    names = [content.item_ids[row] for row in rows]
    reply = client.get("/items", params={"item_id": [*names, "no such item"], "model": "toy"})
    assert reply.status_code == 200
    items = ItemsReply.model_validate(reply.json(), strict=True).items
    assert [(item.item_id, item.title, item.categories) for item in items] == [
        (
            content.item_ids[row],
            content.titles[row] or None,
            [name for name in content.categories.names if row in np.asarray(content.categories.rows(name))],
        )
        for row in sorted(set(rows))
    ]
    assert client.get("/items").json()["items"] == []


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("item_id=", 422, "invalid_id"),
        ("item_id=1&item_id=a%00", 422, "invalid_id"),
        ("item_id=" + "x" * 300, 422, "id_too_long"),
        ("item_id=1&model=nope", 404, "unknown_model"),
        ("model=toy&model=toy", 422, "repeated_parameter"),
    ],
)
def test_items_that_cannot_be_asked_for(client: httpx.Client, query: str, status: int, code: str) -> None:
    reply = client.get(f"/items?{query}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_too_many_items(engine: Engine) -> None:
    with served({"toy": engine}, Settings(max_filter_ids=3)) as server:
        assert httpx.get(f"{server.url}/items?" + "&item_id=a" * 3).status_code == 200
        reply = httpx.get(f"{server.url}/items?" + "&item_id=a" * 4)
        assert reply.json()["error"]["message"] == "item_id holds more than 3 ids"


def test_items_of_a_bundle_without_categories(tmp_path: Path) -> None:
    from dataclasses import replace

    content = replace(make_content(), categories=None)
    write_bundle(tmp_path / "b", content)
    items = Engine.load(tmp_path / "b").items(content.item_ids[:2])
    assert [(item.row, item.categories) for item in items] == [(0, []), (1, [])]


def test_some_users(client: httpx.Client, engine: Engine, content: Content) -> None:
    (model,) = client.get("/models").json()["models"]
    assert model["example_users"] == engine.some_users(5)
    with_items = [user_id for user_id, seen in zip(content.user_ids, content.seen, strict=True) if len(seen)]
    for count in range(20):
        users = engine.some_users(count)
        assert len(users) == min(count, len(with_items))
        assert users == [user_id for user_id in with_items if user_id in users]  # distinct, in the order of the rows
    assert engine.some_users(len(content.user_ids)) == with_items
    assert content.user_ids[2] not in with_items
    gaps = np.diff([with_items.index(user_id) for user_id in engine.some_users(5)])
    assert gaps.max() - gaps.min() <= 1


def test_a_reply_says_how_long_it_took_where_that_is_asked_for(folder: Path) -> None:
    engine = Scripted(Engine.load(folder).manifest)
    engine.open.set()
    ways = [
        ("POST", "/recommend?user_id=u", None),
        ("POST", "/recommend", {"user_id": "u"}),
        ("POST", "/recommend/batch", {"requests": [{"user_id": "u"}]}),
        ("POST", "/recommend", None),
        ("GET", "/models", None),
        ("GET", "/nowhere", None),
        ("GET", "/", None),
    ]
    with served(engines_of(m=engine), Settings()) as server, httpx.Client(base_url=server.url) as client:
        for method, path, body in ways:
            assert "server-timing" not in client.request(method, path, json=body).headers
            began = time.perf_counter()
            reply = client.request(method, path, json=body, headers={"X-Server-Timing": "1"})
            seen = 1e3 * (time.perf_counter() - began)
            (took,) = re.fullmatch(r"app;dur=(\d+\.\d{4})", reply.headers["server-timing"]).groups()  # type: ignore[union-attr]
            assert 0 < float(took) < seen
