"""A worker: a server on a socket that it shares, which ends without leaving anybody unanswered."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import uvicorn

from service.process.server import server_config

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LOOK_S = 0.02
_IDLE_S = 1.0
"""Seconds after which a connection without a request is closed as the worker ends.

Closing it at once would cut off whoever is just sending his next request on it: he has no reply and cannot know whether
it was worked on. Given a moment, which on a crowded machine is long, that request gets its reply, and with it the news
that the connection is to be closed.
"""
_LAST_S = 2.0


class Gated(Protocol):
    """What an application knows of the end: readiness and ``Connection: close`` depend on it."""

    draining: bool


class DrainingServer(uvicorn.Server):
    """Serves until it is told to end, then answers what it has accepted, for a while.

    Args:
        config: Of the server.
        gate: Told when the end begins.
        lease: A pipe's end; the worker ends when nobody holds the other one.
        drain_s: Seconds until connections are cut off.
        on_ready: Called when it listens.
    """

    def __init__(
        self, config: uvicorn.Config, gate: Gated, lease: int, drain_s: float, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._gate, self._lease, self._drain_s, self._on_ready = gate, lease, drain_s, on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the event loop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_reader(self._lease, self._end)
        self._on_ready()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._lease)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody new, let every connection finish, close those that have nothing to finish."""
        self._gate.draining = True
        # Nobody may be there who would see to it that this process ends, whatever happens in it.
        signal.setitimer(signal.ITIMER_REAL, self._drain_s + _LAST_S)
        await self.stop_listening(sockets or [])
        await self._drain()
        await self.lifespan.shutdown()

    async def stop_listening(self, sockets: list[socket.socket]) -> None:
        """Close the listening sockets; take over who has connected and waits: he has been accepted by the system.

        Args:
            sockets: All that this server listens on.
        """
        waiting = [connection for listener in sockets for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _drain(self) -> None:
        """Wait until no connection is left, or time is up."""
        connections: set[HttpToolsProtocol] = self.server_state.connections  # type: ignore[assignment]
        began = time.monotonic()
        idle_since: dict[HttpToolsProtocol, float] = {}
        # A connection accepted just now shows up a turn of the loop later.
        await asyncio.sleep(_LOOK_S)
        while connections and (now := time.monotonic()) < began + self._drain_s:
            idle = {connection for connection in connections if _is_idle(connection)}
            idle_since = {connection: idle_since.get(connection, now) for connection in idle}
            for connection, since in idle_since.items():
                if now - since >= _IDLE_S:
                    connection.transport.close()
            await asyncio.sleep(_LOOK_S)
        for connection in list(connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()


def _is_idle(connection: HttpToolsProtocol) -> bool:
    """Tell whether not one byte of a request is there that has no reply yet."""
    scope: Container[str] | None = connection.scope
    if scope is None:
        return True
    in_head = "method" not in scope
    return not in_head and connection.cycle is not None and connection.cycle.response_complete


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept every connection that waits. The listener does not block."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # none is left, or the system gives no more
            return
        connection.setblocking(False)
        yield connection


def serve(
    gate: Gated,
    protocol: type[asyncio.Protocol],
    listener: socket.socket,
    lease: int,
    *,
    drain_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve an application on a shared socket until SIGTERM or the end of the lease.

    Args:
        gate: The application.
        protocol: Of each connection.
        listener: Listens already.
        lease: See `DrainingServer`.
        drain_s: See `DrainingServer`.
        on_ready: See `DrainingServer`.
    """
    DrainingServer(server_config(gate, http=protocol), gate, lease, drain_s, on_ready).run(sockets=[listener])
