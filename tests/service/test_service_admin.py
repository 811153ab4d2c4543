"""The admin endpoint: only for who has the token, on the loopback address alone."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from service.observe.cells import Cells
from service.process.admin import create_admin
from service.process.supervisor import Outcome, StoppingError
from tests.service.in_process import in_process
from tests.service.processes import command, generations, run
from tests.service.scrape import samples

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import StartServer

TOKEN = "sixteen-characters-or-more"  # noqa: S105
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Supervised:
    """Stands for a supervisor whose reloads end in one way."""

    def __init__(self, outcome: Outcome | None) -> None:
        self.outcome = outcome
        self.reloads = 0

    def status(self) -> dict[str, Any]:
        return {"models": [{"name": "toy"}]}

    async def reload(self) -> Outcome:
        self.reloads += 1
        if self.outcome is None:
            raise StoppingError
        return self.outcome


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": TOKEN},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/status"), ("GET", "/metrics"), ("POST", "/reload"), ("GET", "/nothing")]
)
def test_without_the_token_nothing_is_told_or_done(method: str, path: str, headers: dict[str, str | bytes]) -> None:
    supervised = Supervised(Outcome("succeeded"))

    async def test(client: httpx.AsyncClient) -> None:
        raw = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers.items()]
        reply = await client.request(method, path, headers=raw)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "unauthorized"

    in_process(create_admin(supervised, TOKEN, Cells()), test, started=False)
    assert not supervised.reloads


@pytest.mark.parametrize(
    ("outcome", "status", "wanted"),
    [
        (Outcome("succeeded"), 200, {"models": [{"name": "toy"}]}),
        (Outcome("failed", "no bundle"), 409, {"error": {"code": "reload_failed", "message": "no bundle"}}),
        (None, 503, {"error": {"code": "stopping", "message": "the service ends"}}),
    ],
)
def test_a_reload_is_answered_with_its_outcome(outcome: Outcome | None, status: int, wanted: dict[str, Any]) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        reply = await client.post("/reload", headers=BEARER)
        assert (reply.status_code, reply.json()) == (status, wanted)

    in_process(create_admin(Supervised(outcome), TOKEN, Cells()), test, started=False)


def test_it_describes_itself_to_nobody() -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path, headers=BEARER)).status_code == 404

    in_process(create_admin(Supervised(None), TOKEN, Cells()), test, started=False)


def test_it_listens_on_the_loopback_address_alone(serve: StartServer, folder: Path) -> None:
    """Also where the service listens on every address; and the service's own port knows nothing of it."""
    arguments = ("--bundle", f"toy={folder}", "--host", "0.0.0.0", "--port", "0", "--admin-port", "0")  # noqa: S104
    with serve(*arguments, DVIB_SERVE_ADMIN_TOKEN=TOKEN) as server:
        connections = psutil.Process(server.process.pid).net_connections("tcp")
        listening = {entry.laddr for entry in connections if entry.status == psutil.CONN_LISTEN}
        [(host, port)] = [(place.ip, place.port) for place in listening if place.ip != "0.0.0.0"]  # noqa: S104
        assert host == "127.0.0.1"
        status = httpx.get(f"http://127.0.0.1:{port}/status", headers=BEARER).json()
        assert set(status) == {"generation", "workers", "models", "last_reload"}
        [generation] = generations(server)
        assert [worker["pid"] for worker in status["workers"]] == [child.pid for child in generation.children()]
        assert [model["name"] for model in status["models"]] == ["toy"]
        assert status["last_reload"] == {"state": "none", "reason": "", "time": ""}
        # What the workers count can be read here as well, also when they have no time to say it.
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=BEARER)
        assert page.headers["content-type"] == CONTENT_TYPE_LATEST
        assert samples(page.content)["dvib_serve_workers", frozenset()] == 1
        public = server.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert httpx.post(f"{public}/reload", headers=BEARER).status_code == 404
        # Neither the command line nor the environment of those that load and answer holds the token.
        for process in (generation, *generation.children()):
            assert TOKEN not in " ".join(process.cmdline())
            assert TOKEN not in process.environ().values()


@pytest.mark.parametrize(
    ("arguments", "extra", "wanted"),
    [
        (["--admin-port", "0"], {}, "admin_port and admin_token belong together"),
        ([], {"DVIB_SERVE_ADMIN_TOKEN": TOKEN}, "admin_port and admin_token belong together"),
        (["--admin-port", "0"], {"DVIB_SERVE_ADMIN_TOKEN": "s3cret"}, "DVIB_SERVE_ADMIN_TOKEN"),
        # A key that no request can carry, such as one with the line end of the file that it was in.
        (["--admin-port", "0"], {"DVIB_SERVE_ADMIN_TOKEN": "s3cret-and-longer\n"}, "ADMIN_TOKEN: wanted"),
        ([], {"DVIB_SERVE_API_KEY": "s3cret and longer than that"}, "API_KEY: wanted visible ASCII"),
        ([], {"DVIB_SERVE_API_KEY": "s3cret-und-länger-als-das"}, "API_KEY: wanted visible ASCII"),
        (["--workers", "2"], {"DVIB_SERVE_INDEX_THREADS": "2"}, "set one of them to 1"),
        (["--workers", "0"], {}, "--workers"),
    ],
)
def test_settings_that_do_not_fit(arguments: list[str], extra: dict[str, str], wanted: str) -> None:
    done = run(*command("--bundle", "a=x", *arguments), **extra)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert wanted in done.stderr
    assert "s3cret" not in done.stderr


def test_a_taken_admin_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = ("--bundle", f"toy={folder}", "--port", "0", "--admin-port", port)
        done = run(*command(*line), DVIB_SERVE_ADMIN_TOKEN=TOKEN)
    assert done.returncode == 2
    assert (
        "Address already in use; stop the program that holds the port, or choose another address with --admin-port"
        in (done.stderr)
    )
