from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import pytest

from service.engine import Engine
from service.http.app import create_app
from service.http.gate import Gate
from service.http.schemas import ErrorCode, ModelsReply, RecommendReply
from service.settings import Settings
from tests.helpers_bundle import Content, make_content, write_bundle
from tests.service.in_process import in_process
from tests.service.threaded import Scripted, engines_of, read_reply, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    other = tmp_path_factory.mktemp("other") / "dvib"
    write_bundle(other, make_content(seed=9), variant="adaptive")
    engines = {"baseline": Engine.load(folder), "dvib": Engine.load(other)}
    with served(engines, Settings()) as server, httpx.Client(base_url=server.url) as client:
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
    ("query", "status", "code"),
    [
        ("", 422, "missing_user_id"),
        ("k=3", 422, "missing_user_id"),
        ("user_id=", 422, "invalid_id"),
        ("user_id=a%00b", 422, "invalid_id"),
        ("user_id=" + "x" * 257, 422, "id_too_long"),
        ("user_id=" + "%C3%A9" * 129, 422, "id_too_long"),
        ("user_id=u-1&k=0", 422, "invalid_k"),
        ("user_id=u-1&k=-1", 422, "invalid_k"),
        ("user_id=u-1&k=1001", 422, "invalid_k"),
        ("user_id=u-1&k=1000000000", 422, "invalid_k"),
        ("user_id=u-1&k=ten", 422, "invalid_k"),
        ("user_id=u-1&k=" + "9" * 5000, 422, "invalid_k"),
        ("user_id=u-1&user_id=u-2", 422, "repeated_parameter"),
        ("user_id=u-1&k=5&k=5", 422, "repeated_parameter"),
        ("user_id=u-1&model=dvib&model=dvib", 422, "repeated_parameter"),
        ("user_id=u-1&exclude_seen=no", 422, "invalid_flag"),
        ("user_id=u-1&min_score=nan", 422, "invalid_score"),
        ("user_id=u-1&min_score=inf", 422, "invalid_score"),
        ("user_id=u-1&min_score=-1e999", 422, "invalid_score"),
        ("user_id=u-1&exclude=a&exclude=", 422, "invalid_id"),
        ("user_id=u-1&history=%ff", 422, "invalid_id"),
        ("user_id=u-1&allow=" + "x" * 300, 422, "id_too_long"),
        ("user_id=u-1" + "&history=a" * 1001, 422, "too_many_ids"),
        ("user_id=u-1&category=none+such", 422, "unknown_category"),
        ("user_id=u-1&model=nope", 404, "unknown_model"),
        ("user_id=u-1&model=", 404, "unknown_model"),
        ("user_id=%ff", 422, "invalid_id"),
        ("user_id=u-1%C3", 422, "invalid_id"),
        ("user_id=%ED%A0%80", 422, "invalid_id"),
        ("user%5Fid=%fe&k=3", 422, "invalid_id"),
        ("user_id=" + "x" * 30_000, 422, "id_too_long"),
        ("user_id=" + "x" * 40_000, 414, "uri_too_long"),
        ("user_id=" + "x" * 100_000, 414, "uri_too_long"),
    ],
)
def test_bad_requests(client: httpx.Client, query: str, status: int, code: str) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"POST /recommend?" + query.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        found, headers, body = read_reply(connection)
    assert_error(httpx.Response(found, headers=headers, content=body), status, code)


@pytest.mark.parametrize("query", ["user_id=%EF%BF%BD", "user_id=%EF%BF%BD&other=%ff", "user_id=u-1&%ff=1"])
def test_a_replacement_character_is_an_id_like_any_other(client: httpx.Client, query: str) -> None:
    reply = client.post(f"/recommend?{query}")
    assert reply.status_code == 200
    assert reply.json()["user_id"] in {"\ufffd", "u-1"}


def assert_error(reply: httpx.Response, status: int, code: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code


@pytest.mark.parametrize("params", [{"user_id": "x" * 256}, {"user_id": "é" * 128}, {"user_id": "u-1", "k": "1000"}])
def test_limits_are_inclusive(client: httpx.Client, params: dict[str, str]) -> None:
    assert client.post("/recommend", params=params).status_code == 200


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert_error(client.get("/nothing"), 404, "not_found")
    assert_error(client.get("/models/"), 404, "not_found")
    reply = client.get("/recommend", params={"user_id": "u-1"})
    assert_error(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


def test_models(client: httpx.Client, content: Content) -> None:
    reply = ModelsReply.model_validate(client.get("/models").json(), strict=True)
    assert [(model.name, model.default, model.variant, model.share) for model in reply.models] == [
        ("baseline", True, "none", 1.0),
        ("dvib", False, "adaptive", 0.0),
    ]
    assert reply.models[0].dataset.n_items == len(content.items)
    assert reply.models[0].metrics == {"test": {"ndcg@10": 0.125}}
    assert content.categories is not None
    assert reply.models[0].categories == list(content.categories.names)


def test_alive_ready_and_docs(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/docs").status_code == 200


def test_concurrent_requests_get_their_own_answers(client: httpx.Client, content: Content, folder: Path) -> None:
    engine = Engine.load(folder)
    requests = [(content.user_ids[n % len(content.user_ids)], n % 9 + 1) for n in range(200)]

    def ask(request: tuple[str, int]) -> list[str]:
        reply = client.post("/recommend", params={"user_id": request[0], "k": request[1]})
        return [item["item_id"] for item in reply.json()["items"]]

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, requests))
    assert replies == [[item.item_id for item in engine.recommend(*request).items] for request in requests]


@pytest.mark.parametrize("gated", [False, True])
def test_alive_but_not_ready_before_startup(folder: Path, gated: bool) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        assert_error(await client.get("/readyz"), 503, "not_ready")
        assert_error(await client.post("/recommend?user_id=u-1"), 503, "not_ready")
        assert_error(await client.get("/items/1/similar"), 503, "not_ready")

    app = create_app({"m": Engine.load(folder)}, Settings())
    in_process(app, test, started=False, gate=Gate(app, Settings()) if gated else None)


def parameters_of(operation: dict[str, Any]) -> dict[str, Any]:
    return {parameter["name"]: parameter for parameter in operation.get("parameters", [])}


def test_openapi_documents_replies_and_errors(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert set(paths) == {
        "/recommend",
        "/recommend/batch",
        "/items",
        "/items/{item_id}/similar",
        "/users/{user_id}/history",
        "/models",
        "/models/{name}/certificate",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    codes: set[str] = set()
    for operations in paths.values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if (status, operation["summary"]) == ("200", "Show what is measured"):
                    continue
                media = response["content"]["application/json"]
                assert (media["schema"] == {"$ref": "#/components/schemas/ErrorReply"}) == (status != "200")
                codes |= set(media.get("examples", {}))
    assert codes == set(ErrorCode) - {"method_not_allowed"}
    parameters = parameters_of(paths["/recommend"]["post"])
    assert parameters["k"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}
    body = paths["/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) == set(parameters)
    assert body["schema"]["additionalProperties"] is False
    assert set(parameters_of(paths["/items/{item_id}/similar"]["get"])) == {"item_id", "k", "model"}
    assert set(parameters_of(paths["/users/{user_id}/history"]["get"])) == {"user_id", "limit", "model"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_openapi_examples_fit_their_schemas(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    seen = 0
    for name, schema in schemas.items():
        for example in schema.get("examples", []):
            jsonschema.validate(example, {"$ref": f"#/components/schemas/{name}", "components": document["components"]})
            seen += 1
    for path in ("/recommend", "/recommend/batch"):
        media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in media["examples"].values():
            jsonschema.validate(example["value"], media["schema"])
            jsonschema.Draft202012Validator.check_schema(media["schema"])
            reply = client.post(path, json=example["value"])
            assert reply.status_code == 200, reply.text
            seen += 1
    assert seen >= 7


def test_an_internal_error_shows_no_detail(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = Scripted(Engine.load(folder).manifest, boom=RuntimeError("secret detail"))
    broken.open.set()
    app = create_app(engines_of(m=broken), Settings())

    async def test(client: httpx.AsyncClient) -> None:
        for method, path in (
            ("POST", "/recommend?user_id=u-1"),
            ("GET", "/items/1/similar"),
            ("GET", "/users/1/history"),
        ):
            caplog.clear()
            reply = await client.request(method, path)
            assert_error(reply, 500, "internal")
            assert "secret" not in reply.text
            assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError], path
        assert (await client.get("/readyz")).status_code == 200

    in_process(app, test, started=True, gate=Gate(app, Settings()))
