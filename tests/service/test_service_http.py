from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from export.manifest import Manifest
from service.engine import Engine
from service.http.app import create_app
from service.http.schemas import ErrorCode, ModelsReply, RecommendReply
from service.settings import Settings
from service.values import Recommendation, Request
from tests.helpers_bundle import Content, make_content, write_bundle
from tests.service.in_process import in_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.service.processes import StartServer


@pytest.fixture(scope="module")
def client(serve: StartServer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    other = tmp_path_factory.mktemp("other") / "dvib"
    write_bundle(other, make_content(seed=9), variant="adaptive")
    with (
        serve("--bundle", f"baseline={folder}", "--bundle", str(other), "--port", "0") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        yield client


def test_reply_equals_the_engine(client: httpx.Client, content: Content, folder: Path) -> None:
    engine = Engine.load(folder)
    for user_id in [*content.user_ids, "nobody"]:
        reply = client.post("/recommend", params={"user_id": user_id, "k": 7})
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "application/json"
        answer = engine.recommend(user_id, 7)
        assert reply.json() == {
            "user_id": user_id,
            "model": "baseline",
            "version": engine.manifest.version,
            "source": answer.source,
            "items": [{"item_id": item.item_id, "title": item.title, "score": item.score} for item in answer.items],
        }
        RecommendReply.model_validate(reply.json(), strict=True)


def test_k_defaults_to_ten_and_model_to_the_first(client: httpx.Client) -> None:
    default = client.post("/recommend", params={"user_id": "u-2"}).json()
    assert len(default["items"]) == 10
    assert default["model"] == "baseline"
    other = client.post("/recommend", params={"user_id": "u-2", "model": "dvib"}).json()
    assert other["model"] == "dvib"
    assert other["version"] != default["version"]
    assert other["items"] != default["items"]


@pytest.mark.parametrize(
    ("params", "status", "code"),
    [
        ({}, 422, "missing_user_id"),
        ({"k": "3"}, 422, "missing_user_id"),
        ({"user_id": ""}, 422, "invalid_id"),
        ({"user_id": "a\0b"}, 422, "invalid_id"),
        ({"user_id": "x" * 257}, 422, "id_too_long"),
        ({"user_id": "é" * 129}, 422, "id_too_long"),
        ({"user_id": "u-1", "k": "0"}, 422, "invalid_k"),
        ({"user_id": "u-1", "k": "-1"}, 422, "invalid_k"),
        ({"user_id": "u-1", "k": "1001"}, 422, "invalid_k"),
        ({"user_id": "u-1", "k": "ten"}, 422, "invalid_k"),
        ({"user_id": "u-1", "k": "9" * 5000}, 422, "invalid_k"),
        ({"user_id": "u-1", "model": "nope"}, 404, "unknown_model"),
        ({"user_id": "u-1", "model": ""}, 404, "unknown_model"),
    ],
)
def test_bad_requests(client: httpx.Client, params: dict[str, str], status: int, code: str) -> None:
    assert_error(client.post("/recommend", params=params), status, code)


@pytest.mark.parametrize(
    "query", ["user_id=%ff", "user_id=u-1%C3", "user_id=%ED%A0%80", "user_id=u-1&user_id=a%80", "user%5Fid=%fe&k=3"]
)
def test_an_id_that_is_no_utf8(client: httpx.Client, query: str) -> None:
    assert_error(client.post(f"/recommend?{query}"), 422, "invalid_id")


@pytest.mark.parametrize("query", ["user_id=%EF%BF%BD", "user_id=%EF%BF%BD&other=%ff", "user_id=u-1&%ff=1"])
def test_a_replacement_character_is_an_id_like_any_other(client: httpx.Client, query: str) -> None:
    reply = client.post(f"/recommend?{query}")
    assert reply.status_code == 200
    assert reply.json()["user_id"] in {"\ufffd", "u-1"}


def assert_error(reply: httpx.Response, status: int, code: str) -> None:
    assert reply.status_code == status
    body = reply.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code


@pytest.mark.parametrize("params", [{"user_id": "x" * 256}, {"user_id": "é" * 128}, {"user_id": "u-1", "k": "1000"}])
def test_limits_are_inclusive(client: httpx.Client, params: dict[str, str]) -> None:
    assert client.post("/recommend", params=params).status_code == 200


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert_error(client.get("/nothing"), 404, "not_found")
    reply = client.get("/recommend", params={"user_id": "u-1"})
    assert_error(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


def test_models(client: httpx.Client, content: Content) -> None:
    reply = ModelsReply.model_validate(client.get("/models").json(), strict=True)
    assert [(model.name, model.default, model.variant) for model in reply.models] == [
        ("baseline", True, "none"),
        ("dvib", False, "adaptive"),
    ]
    assert reply.models[0].dataset.n_items == len(content.items)
    assert reply.models[0].metrics == {"test": {"ndcg@10": 0.125}}


def test_alive_ready_and_docs(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/docs").status_code == 200


def test_openapi_documents_replies_and_errors(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/recommend", "/models", "/healthz", "/readyz"}
    operation = document["paths"]["/recommend"]["post"]
    parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert {name: parameter["required"] for name, parameter in parameters.items()} == {
        "user_id": True,
        "k": False,
        "model": False,
    }
    assert parameters["k"]["schema"] | {"minimum": 1, "maximum": 1000, "default": 10} == parameters["k"]["schema"]
    assert set(operation["responses"]) == {"200", "404", "422", "500", "503"}
    codes: set[str] = set()
    for status, response in operation["responses"].items():
        media = response["content"]["application/json"]
        name = "RecommendReply" if status == "200" else "ErrorReply"
        assert media["schema"] == {"$ref": f"#/components/schemas/{name}"}
        codes |= set(media.get("examples", {}))
    assert codes == set(ErrorCode) - {"not_found", "method_not_allowed", "invalid_request"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for example in document["components"]["schemas"]["RecommendReply"]["examples"]:
        RecommendReply.model_validate(example, strict=True)


def test_concurrent_requests_get_their_own_answers(client: httpx.Client, content: Content, folder: Path) -> None:
    engine = Engine.load(folder)
    requests = [(content.user_ids[n % len(content.user_ids)], n % 9 + 1) for n in range(200)]

    def ask(request: tuple[str, int]) -> list[str]:
        reply = client.post("/recommend", params={"user_id": request[0], "k": request[1]})
        return [item["item_id"] for item in reply.json()["items"]]

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, requests))
    assert replies == [[item.item_id for item in engine.recommend(*request).items] for request in requests]


class Broken:
    """Stands for an engine with a bug."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def recommend_many(self, _requests: Sequence[Request]) -> list[Recommendation]:
        raise RuntimeError("secret detail")


def test_alive_but_not_ready_before_startup(folder: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        assert_error(await client.get("/readyz"), 503, "not_ready")
        assert_error(await client.post("/recommend?user_id=u-1"), 503, "not_ready")

    in_process(create_app({"m": Engine.load(folder)}, Settings()), test, started=False)


def test_an_internal_error_shows_no_detail(folder: Path) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        reply = await client.post("/recommend?user_id=u-1")
        assert_error(reply, 500, "internal")
        assert "secret" not in reply.text
        assert (await client.get("/readyz")).status_code == 200

    broken = cast("Engine", Broken(Engine.load(folder).manifest))
    in_process(create_app({"m": broken}, Settings()), test, started=True)
