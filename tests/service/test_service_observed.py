"""What a real service with two workers tells of itself: its metrics page and its log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from export.publish import CURRENT, publish
from service.engine import Engine
from service.http.app import create_app
from service.http.gate import Gate
from service.observe.logs import JsonFormatter
from service.settings import Settings
from tests.helpers_bundle import make_content, write_bundle
from tests.service.load import under_load
from tests.service.processes import Server, generations, until
from tests.service.scrape import samples
from training.common.folders import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.processes import StartServer

CLIENT = httpx.Client(headers={"Connection": "close"})
"""Takes a new connection for each request, so that every worker has its share."""


class Scraped:
    """A page of metrics."""

    def __init__(self, server: Server) -> None:
        reply = CLIENT.get(f"{server.url}/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == CONTENT_TYPE_LATEST
        self.found = samples(reply.content)

    def __call__(self, name: str, **labels: str) -> float:
        return self.found.get((f"dvib_serve_{name}", frozenset(labels.items())), 0.0)

    @property
    def answered(self) -> float:
        return self("replies_total", route="/recommend", model="toy", status="200")

    @property
    def versions(self) -> set[str]:
        return {dict(labels)["version"] for name, labels in self.found if name == "dvib_serve_model_info"}


def ask(server: Server, *users: str, **more: str) -> list[int]:
    """Ask for each user, one after the other; return the status of each reply."""
    return [CLIENT.post(f"{server.url}/recommend", params={"user_id": user, **more}).status_code for user in users]


def test_counts_are_those_of_the_clients_over_reloads_and_a_killed_worker(serve: StartServer, tmp_path: Path) -> None:
    for seed in range(2):
        write_bundle(tmp_path / str(seed), make_content(seed=seed))
    root, folder = tmp_path / "root", tmp_path / "metrics"
    first = publish(tmp_path / "0", root).version
    variables = {"DVIB_SERVE_WATCH_S": "0.1", "DVIB_SERVE_METRICS_DIR": str(folder)}
    with serve("--bundle", f"toy={root}", "--port", "0", "--workers", "2", **variables) as server:
        assert ask(server, *["u-1"] * 10, *["unknown"] * 5) == [200] * 15
        assert ask(server, *["u-1"] * 3, model="other") == [404] * 3
        many = {"requests": [{"user_id": "u-1"}, {"user_id": "who", "history": ["movie 1"]}]}
        assert CLIENT.post(f"{server.url}/recommend/batch", json=many).status_code == 200
        assert CLIENT.get(f"{server.url}/a/path/made/up").status_code == 404
        with socket.create_connection((httpx.URL(server.url).host, httpx.URL(server.url).port or 0)) as nonsense:
            nonsense.sendall(b"no HTTP at all\r\n\r\n")
            assert nonsense.recv(100).startswith(b"HTTP/1.1 400 ")
        found = Scraped(server)
        assert found("refused_total", reason="invalid_request") == 1
        assert found("replies_total", route="other", model="", status="400") == 1
        assert found.answered == found("request_seconds_count", route="/recommend", model="toy") == 15
        assert found("replies_total", route="/recommend", model="", status="404") == 3
        assert found("replies_total", route="/recommend/batch", model="", status="200") == 1
        assert found("replies_total", route="other", model="", status="404") == 1
        assert found("refused_total", reason="unknown_model") == 3
        sources = [found("recommendations_total", model="toy", source=name) for name in ("model", "popular", "history")]
        assert sources == [11, 5, 1]
        assert found("queue_seconds_count", model="toy") == found("batch_size_sum", model="toy") == 17
        assert found("engine_seconds_count", model="toy") == found("batch_size_count", model="toy") <= 17
        assert found("engine_seconds_sum", model="toy") > 0
        assert found("workers") == found("worker_starts_total") == 2
        assert found("requests_in_flight") == 1  # the scrape itself
        assert found("queue_depth", model="toy") == 0
        assert found.versions == {first}

        with under_load(server.url, clients=4) as load:
            second = publish(tmp_path / "1", root).version
            until(lambda: Scraped(server)("reloads_total", outcome="success") == 1)
            write_atomically(root / CURRENT, "0" * 12 + "\n")
            until(lambda: Scraped(server)("reloads_total", outcome="failure") == 1)
            assert Scraped(server)("last_reload_successful") == 0
            write_atomically(root / CURRENT, f"{second}\n")
            until(lambda: Scraped(server)("last_reload_successful") == 1)
        assert not load.failures
        until(lambda: Scraped(server)("workers") == 2 and Scraped(server)("generation") == 1)
        found = Scraped(server)
        assert found.answered == 15 + len(load.answers)
        assert found.versions == {second}

        generations(server)[-1].children()[0].send_signal(signal.SIGKILL)
        until(lambda: Scraped(server)("worker_starts_total") == found("worker_starts_total") + 1)
        assert ask(server, *["u-2"] * 20) == [200] * 20
        after = Scraped(server)
        assert after.answered == found.answered + 20
        assert after("workers") == 2
        assert len(list(folder.iterdir())) <= 2 * (1 + 2 * 2)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def exchange(server: Server) -> httpx.Response:
    """Have a worker log something, and say what must not be in a log."""
    assert ask(server, "u-7", "a stranger") == [200, 200]
    assert ask(server, "u-7", k="0") == [422]
    assert CLIENT.get(f"{server.url}/users/u-7/history").status_code == 200
    return CLIENT.post(f"{server.url}/recommend?user_id=u-7", headers={"X-Request-Id": "my-own.id_1"})


@pytest.mark.parametrize("wanted", [False, True])
def test_the_log_is_json_and_names_users_only_where_asked_to(serve: StartServer, folder: Path, wanted: bool) -> None:
    option = "--access-log" if wanted else "--no-access-log"
    with serve("--bundle", f"toy={folder}", "--port", "0", "--workers", "2", option) as server:
        worker = generations(server)[0].children()[0]
        reply = exchange(server)
        worker.kill()
        until(lambda: Scraped(server)("worker_starts_total") == 3)
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=10)
    assert output == ""
    lines = lines_of(errors)
    assert any("SIGKILL" in line["message"] for line in lines)
    access = [line for line in lines if line["logger"] == "service.access"]
    if not wanted:
        assert not access
        assert "u-7" not in errors
        assert "stranger" not in errors
        return
    asked = [line for line in access if line["path"] != "/metrics"]
    assert [line["status"] for line in asked] == [200, 200, 422, 200, 200]
    assert [line.get("source") for line in asked] == ["model", "popular", None, None, "model"]
    assert [line["path"] for line in asked] == ["/recommend"] * 3 + ["/users/u-7/history", "/recommend"]
    assert asked[0]["query"] == "user_id=u-7"
    assert asked[-1]["request_id"] == reply.headers["x-request-id"] == "my-own.id_1"
    assert len({line["request_id"] for line in access}) == len(access)
    assert {line["slot"] for line in access} <= {"worker-0-0", "worker-0-1"}
    assert asked[0]["model"] == "toy"
    assert asked[0]["version"] == reply.json()["version"]
    assert all(0 < line["ms"] < 60_000 and line["method"] in {"GET", "POST"} for line in asked)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter("0"))
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


def test_a_failure_is_logged_with_its_request_and_replied_without_a_word(folder: Path, log: io.StringIO) -> None:
    engine = Engine.load(folder)

    class Broken(Engine):
        def similar(self, *_: Any) -> Any:
            raise ValueError("a secret of the inside")

        def recommend_many(self, *_: Any) -> Any:
            raise ValueError("another secret")

    engine.__class__ = Broken
    application = create_app({"toy": engine}, Settings())

    async def talk() -> list[httpx.Response]:
        transport = httpx.ASGITransport(Gate(application, Settings()), raise_app_exceptions=False)
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            similar = await client.get("/items/movie 1/similar", headers={"X-Request-Id": "similar-1"})
            recommend = await client.post("/recommend?user_id=u-1", headers={"X-Request-Id": "recommend-1"})
            return [similar, recommend, await client.get("/metrics")]

    similar, recommend, metrics = asyncio.run(talk())
    assert similar.status_code == recommend.status_code == 500
    assert "secret" not in similar.text + recommend.text
    lines = lines_of(log.getvalue())
    (line,) = [line for line in lines if "inside" in line.get("exception", "")]
    assert line["request_id"] == "similar-1"
    assert line["level"] == "ERROR"
    (line,) = [line for line in lines if "another secret" in line.get("exception", "")]
    assert "request_id" not in line  # it belongs to a batch of many
    found = samples(metrics.content)
    assert found["dvib_serve_refused_total", frozenset({("reason", "internal")})] == 2
    assert found["dvib_serve_replies_total", frozenset({("route", "/recommend"), ("model", "toy"), ("status", "500")})]
