"""Takes the place of ``python -m service`` in tests: the same command line, of the standard library, and with faults.

``STAND_IN`` names the faults, separated by commas; without one it behaves as a service should. A request takes 2 ms,
one at a time. Like the service it answers from child processes and follows the ``current`` pointer of a root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FAULTS = set(filter(None, os.environ.get("STAND_IN", "").split(",")))
REQUEST_S = 0.002
SLOW_S = 0.08
LEAK = 20_000
UNSHARED = 100_000_000


def version_of(folder: Path) -> str:
    pointer = folder / "current"
    bundle = folder / "versions" / pointer.read_text().strip() if pointer.exists() else folder
    return str(json.loads((bundle / "manifest.json").read_text("utf-8"))["version"])


class StandIn:
    """One worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = version_of(folder)
        self.most = int(os.environ.get("DVIB_SERVE_MAX_IN_FLIGHT", "1000"))
        self.in_flight = self.answered = 0
        self.turn = asyncio.Lock()
        self.leaked: list[bytes] = [b"x" * UNSHARED] if "unshared" in FAULTS else []
        self.connections: set[asyncio.StreamWriter] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self.answer(head.split(b" ", 2)[1].decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def answer(self, target: str, writer: asyncio.StreamWriter) -> None:
        if self.in_flight >= self.most and "queue" not in FAULTS:
            if "slow" in FAULTS:
                await asyncio.sleep(SLOW_S)
            write(writer, "503 Service Unavailable", b"{}", b"" if "silent" in FAULTS else b"Retry-After: 1\r\n")
            return
        self.in_flight += 1
        try:
            async with self.turn:
                await asyncio.sleep(REQUEST_S)
        finally:
            self.in_flight -= 1
        self.answered += 1
        if "leak" in FAULTS:
            self.leaked.append(os.urandom(LEAK))
        if "fail" in FAULTS and self.answered % 20 == 0:
            write(writer, "500 Internal Server Error", b"{}")
        else:
            write(writer, "200 OK", self.body(target))

    def body(self, target: str) -> bytes:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        items = [{"item_id": str(rank), "title": None, "score": -float(rank)} for rank in range(int(asked["k"]))]
        document = {"user_id": asked["user_id"], "model": asked["model"], "version": self.version, "source": "model"}
        return json.dumps(document | {"items": items}, ensure_ascii=False, separators=(",", ":")).encode()

    async def follow(self, parent: int) -> None:
        while os.getppid() == parent:
            await asyncio.sleep(0.02)
            version = version_of(self.folder)
            if version != self.version and "stay" not in FAULTS:
                self.version = version
                if "drop" in FAULTS:
                    while not self.in_flight:
                        await asyncio.sleep(0)
                    for writer in list(self.connections):
                        writer.transport.abort()
        os._exit(0)


def write(writer: asyncio.StreamWriter, status: str, body: bytes, more: bytes = b"") -> None:
    writer.write(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status.encode(), more, len(body), body))


async def work(listener: socket.socket, folder: Path, parent: int) -> None:
    stand_in = StandIn(folder)
    async with await asyncio.start_server(stand_in.talk, sock=listener):
        await stand_in.follow(parent)


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("--host", "--port", "--bundle"):
        parser.add_argument(option)
    folder = Path(parser.parse_args().bundle.split("=", 1)[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    parent = os.getpid()
    for _ in range(1 if "alone" in FAULTS else int(os.environ.get("DVIB_SERVE_WORKERS", "1"))):
        if not os.fork():
            asyncio.run(work(listener, folder, parent))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stdout.write(f"stand-in: listening on http://127.0.0.1:{listener.getsockname()[1]}, models: bundle\n")
    sys.stdout.flush()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
