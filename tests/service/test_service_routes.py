"""Similar items, histories, certificates, models side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from service.engine import Engine
from service.http.app import create_app
from service.http.schemas import HistoryReply, ModelsReply, SimilarReply
from service.http.split import Split, parse_split
from service.settings import Settings
from tests.helpers_bundle import make_content, write_bundle
from tests.service.in_process import in_process
from tests.service.threaded import Scripted, engines_of, served
from training.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers_bundle import Content

ODD = (
    "a/b",
    "a//b",
    "/",
    "//",
    "a/similar",
    "similar",
    "a b+c",
    "%2F",
    "%",
    "?x=1",
    "#x",
    "é",
    "日本/語",
    "\n",
    "a\n",
    "..",
    "x;y",
    "\x7f",
    "🎬",
    "/similar",
    "a/history",
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Ids that a path would rather not have."""

    content = make_content(n_users=len(ODD) + 3, n_items=len(ODD) * 3, seed=4)
    users = [*ODD, *(f"u-{row}" for row in range(3))]
    items = [*ODD, *(f"i-{row}" for row in range(2 * len(ODD)))]
    return replace(content, user_ids=users, item_ids=items)


@pytest.fixture(scope="module")
def client(odd: Content, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("odd") / "odd"
    write_bundle(path, odd)
    engines = {"odd": Engine.load(path), "toy": Engine.load(folder)}
    with served(engines, Settings(max_k=50)) as server, httpx.Client(base_url=server.url) as client:
        yield client


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def encoded(name: str) -> str:
    """Percent-encode an id, dots too: clients resolve ``..``."""
    return quote(name, safe="").replace(".", "%2E")


@pytest.mark.parametrize("name", ODD)
def test_any_id_finds_its_way(client: httpx.Client, odd: Content, name: str) -> None:
    row = ODD.index(name)
    reply = client.get(f"/items/{encoded(name)}/similar", params={"k": 4})
    assert reply.status_code == 200, reply.text
    SimilarReply.model_validate(reply.json(), strict=True)
    assert reply.json()["item_id"] == name
    vectors = odd.items.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[row]
    cosines[row] = -np.inf
    found = [item["item_id"] for item in reply.json()["items"]]
    # Repeated rows tie up to rounding: their scores are compared, and not their order.
    np.testing.assert_allclose(
        [cosines[odd.item_ids.index(one)] for one in found], np.sort(cosines)[::-1][:4], rtol=1e-9
    )
    reply = client.get(f"/users/{encoded(name)}/history", params={"limit": 50})
    HistoryReply.model_validate(reply.json(), strict=True)
    assert reply.json()["user_id"] == name
    seen = [odd.item_ids[item] for item in odd.seen[row]]
    assert [item["item_id"] for item in reply.json()["items"]] == seen[:50]
    assert reply.json()["n_items"] == len(seen)


def test_history_is_cut_where_asked(client: httpx.Client, odd: Content) -> None:
    reply = client.get("/users/%2F/history?limit=2").json()
    assert client.get("/users/%2F/history?limit=2&k=0").json() == reply  # k is none of its parameters
    seen = odd.seen[ODD.index("/")]
    assert [item["item_id"] for item in reply["items"]] == [odd.item_ids[item] for item in seen[:2]]
    assert reply["n_items"] == len(seen)


def test_a_model_can_be_named(client: httpx.Client, content: Content) -> None:
    assert code(client.get("/users/u-2/history?model=none")) == (404, "unknown_model")
    assert client.get("/users/u-4/history?model=toy").json()["model"] == "toy"
    item = quote(content.item_ids[0], safe="")
    assert code(client.get(f"/items/{item}/similar")) == (404, "unknown_item")
    assert client.get(f"/items/{item}/similar?model=toy").status_code == 200


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/items/none/similar", (404, "unknown_item")),
        ("/users/none/history", (404, "unknown_user")),
        ("/items//similar", (422, "invalid_id")),
        ("/users//history", (422, "invalid_id")),
        ("/items/%00/similar", (422, "invalid_id")),
        ("/items/%ff/similar", (422, "invalid_id")),
        ("/items/%ED%A0%80/similar", (422, "invalid_id")),
        ("/users/" + "x" * 257 + "/history", (422, "id_too_long")),
        ("/users/" + "x" * 40_000 + "/history", (414, "uri_too_long")),
        ("/items/%2F/similar?k=0", (422, "invalid_k")),
        ("/items/%2F/similar?k=51", (422, "invalid_k")),
        ("/items/%2F/similar?k=1&k=2", (422, "repeated_parameter")),
        ("/users/%2F/history?limit=0", (422, "invalid_limit")),
        ("/users/%2F/history?limit=x", (422, "invalid_limit")),
        ("/users/%2F/history?limit=1&limit=1", (422, "repeated_parameter")),
        ("/users/%2F/history?model=odd&model=odd", (422, "repeated_parameter")),
        ("/%69tems/a/similar", (404, "not_found")),
        ("/items/a/similar/", (404, "not_found")),
        ("/models/none/certificate", (404, "unknown_model")),
        ("/models/a%2Fb/certificate", (404, "not_found")),
    ],
)
def test_refusals(client: httpx.Client, path: str, wanted: tuple[int, str]) -> None:
    assert code(client.get(path)) == wanted


def test_certificates(client: httpx.Client) -> None:
    reply = client.get("/models/toy/certificate")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"toy": "no proof"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {"a": 1.0}),
        (" ", {"a": 1.0}),
        ("b=2", {"b": 1.0}),
        ("a=50,b=50", {"a": 0.5, "b": 0.5}),
        (" b = 1e-3 , a=0.003 ", {"b": 0.25, "a": 0.75}),
    ],
)
def test_splits(text: str, wanted: dict[str, float]) -> None:
    assert parse_split(text, ["a", "b"]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", "'a' names no weight"),
        ("a=1,", "'' names no weight"),
        ("c=1", "no model 'c' is served"),
        ("a=1,a=2", "'a' is named twice"),
        ("a=0", "'0' is no number from 1e-06 to 1e\\+06"),
        ("a=-1", "'-1' is no number from 1e-06 to 1e\\+06"),
        ("a=nan", "'nan' is no number from 1e-06 to 1e\\+06"),
        ("a=inf", "'inf' is no number from 1e-06 to 1e\\+06"),
        ("a=x", "'x' is no number from 1e-06 to 1e\\+06"),
        ("a=1e308,b=1e308", "'1e308' is no number"),
    ],
)
def test_impossible_splits(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as caught:
        parse_split(text, ["a", "b"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        create_app(engines_of(), Settings(split=text))


def test_each_model_answers_its_share_and_each_user_has_one() -> None:
    users = [f"user {number}" for number in range(20_000)]
    split = Split(parse_split("a=70,b=20,c=10", ["a", "b", "c"]), "salt")
    dealt = Counter(map(split, users))
    for name, share in (("a", 0.7), ("b", 0.2), ("c", 0.1)):
        # Five standard deviations of a fair deal.
        assert abs(dealt[name] / len(users) - share) < 5 * np.sqrt(share * (1 - share) / len(users))
    for user in users[:200]:
        place = int.from_bytes(blake2b(b"salt\0" + user.encode(), digest_size=8).digest(), "big") / 2**64
        assert split(user) == ("a" if place < 0.7 else "b" if place < 0.9 else "c")
    other = Split(parse_split("a=70,b=20,c=10", ["a", "b", "c"]), "pepper")
    assert 0.4 < np.mean([split(user) == other(user) for user in users]) < 0.7  # 0.54 where nothing is alike


def test_models_side_by_side(folder: Path) -> None:
    manifest = Engine.load(folder).manifest
    a, b = Scripted(manifest), Scripted(manifest)
    a.open.set()
    b.open.set()
    options = Settings(split="a=1,b=3", split_salt="s")
    split = Split(parse_split(options.split, ["a", "b"]), "s")

    async def test(client: httpx.AsyncClient) -> None:
        models = ModelsReply.model_validate((await client.get("/models")).json(), strict=True).models
        assert [(model.name, model.share, model.categories) for model in models] == [
            ("a", 0.25, ["rare"]),
            ("b", 0.75, ["rare"]),
        ]
        for number in range(40):
            user = f"u{number}"
            assert (await client.post(f"/recommend?user_id={user}")).json()["model"] == split(user)
            assert (await client.post("/recommend", json={"user_id": user})).json()["model"] == split(user)
            assert (await client.post(f"/recommend?user_id={user}&model=a")).json()["model"] == "a"
        await asyncio.sleep(0)
        batch = {"requests": [{"user_id": f"u{number}"} for number in range(40)]}
        a.asked.clear()
        b.asked.clear()
        replies = (await client.post("/recommend/batch", json=batch)).json()["replies"]
        assert [reply["model"] for reply in replies] == [split(f"u{number}") for number in range(40)]
        assert [reply["items"][0]["item_id"] for reply in replies] == [f"for u{number}" for number in range(40)]
        assert [len(engine.asked) for engine in (a, b)] == [1, 1]  # each model's questions at once

    in_process(create_app(engines_of(a=a, b=b), options), test, started=True)
    assert a.asked
    assert b.asked


def test_a_batch_finds_room_for_all_or_none(folder: Path) -> None:
    engine = Scripted(Engine.load(folder).manifest)

    async def test(client: httpx.AsyncClient) -> None:
        batch = {"requests": [{"user_id": f"u{number}"} for number in range(6)]}
        assert code(await client.post("/recommend/batch", json=batch)) == (503, "overloaded")
        assert engine.asked == []
        engine.open.set()
        batch["requests"].pop()
        assert (await client.post("/recommend/batch", json=batch)).status_code == 200

    in_process(create_app(engines_of(m=engine), Settings(max_queue=5)), test, started=True)
