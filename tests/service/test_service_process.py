from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from export import bundle
from tests.helpers_bundle import make_content, write_bundle
from tests.service.processes import command, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import StartServer


# CI machines force colours, which cut option names into pieces.
PLAIN = {"COLUMNS": "120", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}


def refuse(*arguments: str, **extra: str) -> str:
    """Run a command line that must be refused; return its one line on stderr."""
    done = run(*command(*arguments), **extra)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("dvib-serve: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_listens_answers_and_stops_at_sigterm(serve: StartServer, folder: Path) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0") as server, httpx.Client(base_url=server.url) as client:
        assert "toy (vbpr " in server.announcement
        assert client.post("/recommend?user_id=u-1").status_code == 200
        started = time.monotonic()  # the client's connection stays open
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=10)
        assert server.process.returncode == 0
        assert time.monotonic() - started < 3
        assert (output, errors) == ("", "")  # no access log unless asked for


def test_environment_configures_and_options_win(serve: StartServer, folder: Path) -> None:
    variables = {
        "DVIB_SERVE_BUNDLES": f"one={folder}, two={folder}",
        "DVIB_SERVE_PORT": "1",
        "DVIB_SERVE_MAX_K": "20",
        "DVIB_SERVE_ACCESS_LOG": "true",
    }
    with serve("--port", "0", **variables) as server:
        models = httpx.get(f"{server.url}/models").json()["models"]
        assert [model["name"] for model in models] == ["one", "two"]
        reply = httpx.post(f"{server.url}/recommend?user_id=u-1&k=21")
        assert reply.json()["error"]["message"].endswith("from 1 to 20")
        server.process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.process.communicate(timeout=10)[1].splitlines()]
        assert ("POST", "/recommend", "user_id=u-1&k=21") in {
            (line.get("method"), line.get("path"), line.get("query")) for line in lines
        }


def test_taken_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refuse("--bundle", f"toy={folder}", "--port", str(port))
    assert f"127.0.0.1:{port}: Address already in use" in line
    assert "--port" in line


def test_missing_bundle(tmp_path: Path) -> None:
    line = refuse("--bundle", f"toy={tmp_path / 'nothing'}", "--port", "0")
    assert f"no bundle at {tmp_path / 'nothing'}" in line


def test_one_altered_byte(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / bundle.INDEX).read_bytes())
    data[-1] ^= 1
    (copy / bundle.INDEX).write_bytes(data)
    assert bundle.INDEX in refuse("--bundle", f"good={folder}", "--bundle", f"bad={copy}", "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "no bundle to serve"),
        (["--bundle", "a b=x"], "the name 'a b'"),
        (["--bundle", "=x"], "the name ''"),
        (["--bundle", "a="], "names no folder"),
        (["--bundle", "n" * 65 + "=x"], "1 to 64"),
        (["--bundle", "a=x", "--bundle", "a=y"], "already taken by x"),
        (["--bundle", "a=x", "--bundle", "y/a"], "already taken by x"),
        (["--bundle", "a=x", "--port", "65536"], "--port: Input should be less than or equal to 65535, got 65536"),
        (["--bundle", "a=x", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:8000"),
        (["--bundle", "a=x", "--host", ""], "--host"),
    ],
)
def test_bad_options(arguments: list[str], wanted: str) -> None:
    assert wanted in refuse(*arguments)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("DVIB_SERVE_PORT", "eighty", "DVIB_SERVE_PORT: Input should be a valid integer"),
        ("DVIB_SERVE_PROT", "80", "did you mean 'DVIB_SERVE_PORT'?"),
        ("DVIB_SERVE_DEFAULT_K", "2000", "default_k 2000 is above max_k 1000"),
    ],
)
def test_bad_environment(name: str, value: str, wanted: str) -> None:
    assert wanted in refuse("--bundle", "a=x", **{name: value})


def test_unknown_option_and_help() -> None:
    done = run(*command("--nonsense"), **PLAIN)
    assert done.returncode == 2
    assert "--nonsense" in done.stderr
    shown = run(*command("--help"), **PLAIN)
    assert shown.returncode == 0
    assert "dvib-serve --bundle baseline=bundles/baseline" in shown.stdout
    for option in ("--bundle", "--host", "--port", "--access-log"):
        assert option in shown.stdout


def test_the_process_imports_no_training_libraries(folder: Path) -> None:
    program = f"""
import sys
from pathlib import Path
import service.cli, service.__main__, uvicorn
from service.http.app import create_app
from service.engine import Engine
from service.settings import Settings
engine = Engine.load(Path({str(folder)!r}))
assert engine.recommend("u-1", 3).items
create_app({{"toy": engine}}, Settings()).openapi()
heavy = {{"torch", "torch_geometric", "sklearn", "scipy", "polars", "pandas"}} & set(sys.modules)
ours = {{name for name in sys.modules if name.startswith(("training.", "export."))}}
parts = ("arrays", "bundle", "manifest", "serving", "index", "onnx_", "publish", "runtime", "scores", "writing")
allowed = ("training.common", *("export." + name for name in parts))
assert not heavy, heavy
assert all(name.startswith(allowed) for name in ours), ours
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


def test_two_bundles_of_ml_100k_size_stay_under_200_mb(serve: StartServer, tmp_path: Path) -> None:
    arguments = ["--port", "0"]
    for seed, name in enumerate(("baseline", "dvib")):
        content = make_content(n_users=943, n_items=1600, dimension=128, seen_share=0.05, seed=seed)
        write_bundle(tmp_path / name, content)
        arguments += ["--bundle", str(tmp_path / name)]
    with serve(*arguments) as server, httpx.Client(base_url=server.url) as client:
        for user in range(1, 200):
            for name in ("baseline", "dvib"):
                params: dict[str, str | int] = {"user_id": f"u-{user}", "k": 1000, "model": name}
                assert client.post("/recommend", params=params).status_code == 200
        process = psutil.Process(server.process.pid)
        parts = [process, *process.children(recursive=True)]
        resident = sum(part.memory_full_info().pss for part in parts)
        assert resident < 200e6, f"{resident / 1e6:.0f} MB"
        loaded = {entry.path for part in parts for entry in part.memory_maps() if entry.path.endswith(".so")}
        assert not [path for path in loaded if f"{os.sep}torch{os.sep}" in path]
