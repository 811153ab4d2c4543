"""Server processes of our own, and a plain keep-alive connection to one, from the standard library."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlencode

from benchmarks.ending import orderly_at_sigterm
from training.common.errors import DvibError

START_S = 60.0
STOP_S = 10.0
REPLY_S = 30.0
_ANNOUNCED = "listening on http://"
_LINE = 65536
_LOOK_S = 0.01


class ServerError(DvibError):
    """The server did not start, or gave another reply than the one it was asked for."""


class Server(NamedTuple):
    """A server that listens: where, and which process it is."""

    host: str
    port: int
    pid: int


@contextmanager
def running(module: str, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run one of our modules that serves, in a process of its own, until the block ends.

    Settings of the caller's environment (``DVIB_SERVE_*``) are left out: the server runs with its defaults, and with
    what is given here.

    Args:
        module: Run as ``python -m``. It says on stdout that it is ``listening on http://HOST:PORT, ...``.
        arguments: Its command line.
        variables: Environment variables that it gets beside ours.

    Yields:
        The server, when it listens.

    Raises:
        ServerError: The server ended, or did not announce itself in time; the message holds its last line.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DVIB_SERVE_")}
    # -P: a folder named "service" where the benchmark was started must not take the package's place.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with (
        orderly_at_sigterm(),
        # Files, not pipes: a server that says much must not be held up because nobody reads.
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as messages,
        subprocess.Popen(command, stdout=output, stderr=messages, env=ours | dict(variables or {})) as process,
    ):
        try:
            yield Server(*_address(process, output, messages), process.pid)
        finally:
            _stop(process)


@contextmanager
def serving(bundles: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Run one ``dvib-serve`` process that holds all bundles, on a free port of the loopback address.

    Args:
        bundles: Model name → folder.

    Yields:
        Host and port.

    Raises:
        ServerError: See ``running``.
    """
    with running("service", *serve_arguments(bundles)) as server:
        yield server.host, server.port


def serve_arguments(bundles: Mapping[str, Path]) -> list[str]:
    """Return the command line of a ``dvib-serve`` that holds all bundles, on a free port of the loopback address."""
    options = [part for name, folder in bundles.items() for part in ("--bundle", f"{name}={folder.absolute()}")]
    return ["--host", "127.0.0.1", "--port", "0", *options]


def _address(process: subprocess.Popen[bytes], output: IO[bytes], messages: IO[str]) -> tuple[str, int]:
    deadline = time.monotonic() + START_S
    line = ""
    while not line.endswith("\n"):
        ended = process.poll() is not None or time.monotonic() > deadline
        # Read at a place of our own: what is written goes where the server's end of the file stands.
        found, whole, _ = os.pread(output.fileno(), _LINE, 0).decode(errors="replace").partition("\n")
        line = found + whole
        if ended:
            break
        time.sleep(_LOOK_S)
    place = line.partition(_ANNOUNCED)[2].partition(",")[0].strip()
    host, _, port = place.rpartition(":")
    if not port.isdigit():
        _stop(process)
        messages.seek(0)
        said = messages.read().strip().splitlines()
        raise ServerError(f"the server did not start: {said[-1] if said else line.strip() or 'it said nothing'}")
    return host, int(port)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


class Connection:
    """One keep-alive connection that asks one model for recommendations.

    Args:
        host: Of the server.
        port: Of the server.
        model: Name of the model.
        k: Items per reply.
    """

    def __init__(self, host: str, port: int, model: str, k: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=REPLY_S)
        self._model = model
        self._k = k

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def target(self, user_id: str) -> str:
        """Return path and query of a request, to be made before the time is taken."""
        return "/recommend?" + urlencode({"user_id": user_id, "k": self._k, "model": self._model})

    def post(self, target: str) -> bytes:
        """Send one request and read its whole reply.

        Raises:
            ServerError: No reply, or another status than 200.
        """
        try:
            self._connection.request("POST", target)
            with self._connection.getresponse() as reply:
                body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"POST {target}: no reply: {error or type(error).__name__}") from error
        if reply.status != http.client.OK:
            raise ServerError(f"POST {target}: status {reply.status}: {body[:200].decode(errors='replace')}")
        return body

    def check(self, user_id: str, version: str) -> None:
        """Make sure that the replies come from the bundle that is meant.

        Raises:
            ServerError: The reply names another model or version, or the server does not know the user.
        """
        reply: dict[str, Any] = json.loads(self.post(self.target(user_id)))
        found, wanted = (reply["model"], reply["version"]), (self._model, version)
        if found != wanted or reply["source"] == "popular":
            raise ServerError(f"the server answers user {user_id!r} from {found}, {reply['source']}; wanted {wanted}")
