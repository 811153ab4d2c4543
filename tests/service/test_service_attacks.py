"""A real service under attack: everybody gets what he deserves, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import httpx

from benchmarks.production.attacker import WAIT_S, Connection, right_reply, wrong_with
from benchmarks.production.hostile import LIMITS, all_attacks
from service.values import Request
from tests.service.processes import STOP_S, tree
from tests.service.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers_bundle import Content
    from tests.service.processes import StartServer

IDLE, ROUNDS = 200, 2


class Neighbour:
    """Somebody who asks ordinary questions over one kept connection, and compares the answers with the right ones."""

    def __init__(self, url: str, content: Content) -> None:
        reference = Reference(content)
        self._right = {user: reference.answer(Request(user, 5)) for user in [*content.user_ids, "nobody"]}
        self._place = urlsplit(url).netloc
        self._end = threading.Event()
        self.failures: list[str] = []
        self.answered = 0

    def stop(self) -> None:
        self._end.set()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._place, timeout=WAIT_S)
        connection.connect()
        connection.auto_open = 0  # a connection that the server ends is a failure
        while not self._end.is_set():
            for user, wanted in self._right.items():
                try:
                    connection.request("POST", f"/recommend?user_id={quote(user, safe='')}&k=5")
                    reply = connection.getresponse()
                    document = json.loads(reply.read())
                    found = (document["source"], [(item["item_id"], item["score"]) for item in document["items"]])
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    self.failures.append(f"{user}: {error!r}")
                    return
                if reply.status != 200 or found != wanted:
                    self.failures.append(f"{user}: {reply.status} {document}")
                self.answered += 1
                self._end.wait(0.005)
        connection.close()


@contextmanager
def neighbours(url: str, content: Content) -> Iterator[list[Neighbour]]:
    people = [Neighbour(url, content) for _ in range(3)]
    threads = [threading.Thread(target=one.run) for one in people]
    for thread in threads:
        thread.start()
    try:
        yield people
    finally:
        for one in people:
            one.stop()
        for thread in threads:
            thread.join()


def test_attacks_are_refused_and_harm_nobody(serve: StartServer, folder: Path, content: Content) -> None:
    with serve("--bundle", f"toy={folder}", "--port", "0", **LIMITS) as server:
        port = int(server.url.rpartition(":")[2])
        before = [process.pid for process in tree(server)]
        right, attacks = right_reply(port), all_attacks()
        assert right == httpx.post(f"{server.url}/recommend?user_id=u-2&k=3").content
        with neighbours(server.url, content) as people, ThreadPoolExecutor(16) as pool, ExitStack() as idlers:
            idle = [idlers.enter_context(Connection(port)) for _ in range(IDLE)]
            for _ in range(ROUNDS):
                done = [one.answered for one in people]
                wrong = list(pool.map(lambda attack: wrong_with(attack, port, right), attacks))
                assert [one for one in wrong if one] == []
                assert all(one.answered > number for one, number in zip(people, done, strict=True))
            assert [connection.reply() for connection in idle] == [None] * IDLE
            assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert [failure for one in people for failure in one.failures] == []
        assert [process.pid for process in tree(server)] == before
        server.process.terminate()
        assert [line for line in _log(server.process).splitlines() if "Traceback" in line] == []
        assert server.process.returncode == 0


def _log(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=STOP_S)[1]
