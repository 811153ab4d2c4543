"""Workers share what was loaded, are forked again when they end, and leave nobody unanswered."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from export import bundle
from export.index import build_index
from export.index_tuning import IndexChoice
from service.engine import Engine
from service.process.endings import ending_with, how_it_ended
from tests.helpers_bundle import Content, write_bundle
from tests.helpers_export import edit_json, reseal
from tests.service.load import under_load
from tests.service.processes import Server, all_gone, generations, tree, until

if TYPE_CHECKING:
    from tests.service.processes import StartServer


def workers(server: Server) -> list[psutil.Process]:
    [generation] = generations(server)
    return list(generation.children())


def pipes(process: psutil.Process) -> set[str]:
    """Return the pipes of which a process holds an end."""
    folder = Path(f"/proc/{process.pid}/fd")
    links = [os.readlink(folder / name) for name in os.listdir(folder)]  # noqa: PTH115, PTH208 (they come and go)
    return {link for link in links if link.startswith("pipe:")}


def idle(server: Server) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port or 0))


def ask(url: str, model: str, user: str) -> list[str]:
    reply = httpx.post(f"{url}/recommend", params={"user_id": user, "model": model, "k": 5})
    return [item["item_id"] for item in reply.json()["items"]]


def test_forked_workers_answer_from_every_kind_of_index(
    serve: StartServer, folder: Path, content: Content, tmp_path: Path
) -> None:
    """Each of two workers, and each after it was forked again; nothing that was loaded has left a thread behind."""
    approximate = tmp_path / "ivf"
    write_bundle(approximate, content)
    entry = build_index(
        content.items, approximate / bundle.INDEX, content.users, IndexChoice("IVF4,Flat"), content.seen
    )
    edit_json(approximate / bundle.MANIFEST, lambda document: document.update(index=entry.model_dump(mode="json")))
    reseal(approximate)
    expected = {
        (name, user): [item.item_id for item in Engine.load(path).recommend(user, 5).items]
        for name, path in (("flat", folder), ("ivf", approximate))
        for user in content.user_ids
    }
    arguments = ("--bundle", f"flat={folder}", "--bundle", f"ivf={approximate}", "--port", "0", "--workers", "2")
    with serve(*arguments) as server:
        [generation] = generations(server)
        assert generation.num_threads() == 1
        for alone in range(2):
            # One worker stands still, so the other one answers.
            first, second = sorted(workers(server), key=lambda process: process.pid)
            still = (first, second)[alone]
            still.suspend()
            assert {key: ask(server.url, *key) for key in expected} == expected
            still.resume()
        # A worker keeps all pipes of its parent but the one that tells of ended children, and none of another worker.
        held, own = pipes(generation), [pipes(worker) - pipes(generation) for worker in (first, second)]
        assert [len(held - pipes(worker)) for worker in (first, second)] == [1, 1]
        assert len(own[0]) == len(own[1])


def test_two_search_threads_are_started_after_the_fork(serve: StartServer, folder: Path, content: Content) -> None:
    engine = Engine.load(folder)
    with serve("--bundle", f"toy={folder}", "--port", "0", DVIB_SERVE_INDEX_THREADS="2") as server:
        for user in content.user_ids:
            assert ask(server.url, "toy", user) == [item.item_id for item in engine.recommend(user, 5).items]


def test_sigterm_under_load_answers_everybody(serve: StartServer, folder: Path) -> None:
    with (
        serve("--bundle", f"toy={folder}", "--port", "0", "--workers", "2") as server,
        under_load(server.url, clients=16, pause_s=0.1) as load,  # longer than a worker looks twice at connections
    ):
        until(lambda: len(load.answers) > 64, what="load")
        processes = tree(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert all_gone(processes)
        until(lambda: load.refused > 0, what="a refused connection")
    assert load.failures == []


BUSY = """
import os, socket, sys, threading, time
from service.process.server import server_config
from service.process.worker import DrainingServer

class App:
    draining = False

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/last":
            print("busy", flush=True)
            time.sleep(0.5)
            await server.stop_listening([listener])
            server.should_exit = True
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

listener = socket.create_server(("127.0.0.1", 0))
lease, _ = os.pipe()
app = App()
server = DrainingServer(
    server_config(app), app, lease, 5, lambda: print(listener.getsockname()[1], flush=True)
)
server.run(sockets=[listener])
"""


def test_who_waits_in_the_backlog_is_answered_too() -> None:
    """The worker is busy until it stops listening; meanwhile somebody has connected."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        place = ("127.0.0.1", int(process.stdout.readline()))
        with socket.create_connection(place) as last, socket.socket() as late:
            last.sendall(b"GET /last HTTP/1.1\r\nHost: test\r\n\r\n")
            assert process.stdout.readline() == "busy\n"
            late.connect(place)
            late.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            assert last.recv(12) == late.recv(12) == b"HTTP/1.1 200"
        assert process.wait(10) == 0


def test_idle_connections_do_not_hold_the_end_up(serve: StartServer, folder: Path) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0") as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/recommend?user_id=u-1").status_code == 200
        with idle(server), idle(server):
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)  # as Ctrl-C does
            assert server.process.wait(10) == 0
            assert time.monotonic() - began < 3


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_request_that_is_still_coming_is_waited_for(serve: StartServer, folder: Path, earlier: int) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0") as server, idle(server) as connection:
        for _ in range(earlier):
            connection.sendall(b"POST /recommend?user_id=u-1 HTTP/1.1\r\nHost: test\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"POST /recommend?user_id=u-1 HTTP/1.1\r\n")
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        connection.sendall(b"Host: test\r\n\r\n")
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close\r\n" in reply
        assert server.process.wait(10) == 0


def test_who_does_not_finish_is_cut_off(serve: StartServer, folder: Path) -> None:
    """A client that never ends his request holds the end up as long as was allowed, and no longer."""
    with (
        serve("--bundle", f"toy={folder}", "--port", "0", DVIB_SERVE_DRAIN_S="0.5") as server,
        idle(server) as connection,
    ):
        connection.sendall(b"POST /recommend?user_id=u-1 HTTP/1.1\r\nContent-")
        time.sleep(0.2)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert 0.4 < time.monotonic() - began < 4


def test_a_worker_that_hangs_does_not_hold_the_end_up(serve: StartServer, folder: Path) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0", DVIB_SERVE_DRAIN_S="0.1") as server:
        processes = tree(server)
        workers(server)[0].suspend()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        until(lambda: all_gone(processes), seconds=2, what="the end")


def test_a_killed_worker_comes_back_and_others_serve_on(serve: StartServer, folder: Path) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0", "--workers", "2") as server:
        for _ in range(2):
            other, victim = sorted(workers(server), key=lambda process: process.create_time())
            victim.kill()
            with ThreadPoolExecutor(4) as pool:
                replies = pool.map(lambda _: httpx.post(f"{server.url}/recommend?user_id=u-1").status_code, range(20))
                assert set(replies) == {200}
            until(lambda: len(workers(server)) == 2, seconds=5, what="another worker")
            assert other in workers(server)
            assert victim not in workers(server)
        assert server.process.stderr is not None
        lines = [json.loads(server.process.stderr.readline())["message"] for _ in range(2)]
        assert "was ended by SIGKILL" in lines[0]
        assert "starts in 0 s" in lines[0]
        # Who keeps dying is waited for, a little longer each time.
        assert "starts in 0.5 s" in lines[1]


def test_when_the_generation_is_killed_its_workers_serve_on_until_the_next(serve: StartServer, folder: Path) -> None:
    with (
        serve("--bundle", f"toy={folder}", "--port", "0", "--workers", "2") as server,
        under_load(server.url) as load,
    ):
        [generation] = generations(server)
        orphans = generation.children()
        generation.kill()
        until(lambda: generations(server) not in ([], [generation]), what="another generation")
        until(lambda: all_gone(orphans), what="the end of the orphans")
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 50, what="load")
        assert len(workers(server)) == 2
    assert load.failures == []
    assert load.refused == 0


def test_nobody_outlives_the_supervisor(serve: StartServer, folder: Path, tmp_path: Path) -> None:
    arguments = ("--bundle", f"toy={folder}", "--port", "0", "--workers", "2")
    # Who is killed removes no temporary folder.
    with serve(*arguments, TMPDIR=str(tmp_path)) as server, idle(server):
        processes = tree(server)
        server.process.kill()
        until(lambda: all_gone(processes), seconds=5, what="the end")
        place = urlsplit(server.url)
        socket.create_server((place.hostname or "", place.port or 0)).close()


def test_whoever_loads_ends_with_the_lease() -> None:
    """In the midst of a call that no line of Python interrupts, as loading is."""
    reads, writes = os.pipe()
    program = f"""
import hashlib
from service.process.endings import {ending_with.__name__}
with {ending_with.__name__}({reads}):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[reads], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        os.close(reads)
        os.close(writes)
        assert process.wait(5) == -signal.SIGIO


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(3, "ended with exit code 3"), (-signal.SIGSEGV, "SIGSEGV"), (-signal.SIGKILL, "where memory is short")],
)
def test_how_it_ended(code: int, wanted: str) -> None:
    assert wanted in how_it_ended(code)
