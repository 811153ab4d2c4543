"""Clients that ask a server without pause over kept connections, and note every answer and every failure."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 15


class Answer(NamedTuple):
    """A reply 200, with the version that gave it and when, in seconds of the monotonic clock."""

    asked: float
    answered: float
    version: str


class Load:
    """What some clients have got so far.

    Attributes:
        answers: Every reply 200.
        failures: Everything else but for refused connections: whoever was let in is to be answered.
        refused: Connections that the system refused.
    """

    def __init__(self, url: str, pause_s: float) -> None:
        self._pause_s = pause_s
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 0
        self._end = False
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self.refused = 0

    def stop(self) -> None:
        """Let every client end after the answer that it waits for."""
        self._end = True

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(clients)))

    async def _client(self, number: int) -> None:
        while not self._end:
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            except ConnectionRefusedError:
                self.refused += 1
                await asyncio.sleep(self._pause_s)
                continue
            except OSError as error:
                self.failures.append(f"connecting: {error!r}")
                continue
            try:
                await self._ask(reader, writer, number)
            except (OSError, EOFError, TimeoutError) as error:
                self.failures.append(f"client {number}: {error!r}")
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        """Ask over one connection until one side ends it."""
        request = f"POST /recommend?user_id=u-{number + 1}&k=3 HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        open_ = True
        while open_ and not self._end:
            asked = time.monotonic()
            writer.write(request)
            async with asyncio.timeout(_PATIENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length: ")[2].partition("\r")[0])
                body = await reader.readexactly(length)
            if " 200 " in head.partition("\r")[0]:
                self.answers.append(Answer(asked, time.monotonic(), json.loads(body)["version"]))
            else:
                self.failures.append(f"{head.splitlines()[0]} {body!r}")
            open_ = "connection: close" not in head
            await asyncio.sleep(self._pause_s)


@contextmanager
def under_load(url: str, clients: int = 8, pause_s: float = 0.02) -> Iterator[Load]:
    """Ask a server from a thread as long as the block lasts; every client gets its last answer.

    Args:
        url: Of the server.
        clients: Each with one connection at a time.
        pause_s: Seconds that each waits between an answer and its next question.
    """
    load = Load(url, pause_s)
    thread = threading.Thread(target=lambda: asyncio.run(load.run(clients)))
    thread.start()
    try:
        yield load
    finally:
        load.stop()
        thread.join()
