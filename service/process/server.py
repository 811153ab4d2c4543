"""A listening socket, and the life of the server behind it: any application, with the settings of ``dvib-serve``."""

from __future__ import annotations

import copy
import os
import socket
from typing import TYPE_CHECKING, Any, Literal

import typer

from training.common.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

    import uvicorn

_BACKLOG = 2048
_SHUTDOWN_S = 5


def listen(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """Return a listening TCP socket.

    It listens from the start, and not only when the models are loaded: two sockets can be *bound* to one port, so only
    listening tells whether the port is free. Clients that connect early wait in the backlog.

    Args:
        host: Name or address of this machine.
        port: 0 takes a free one.
        option: Of the command line, by which the port is chosen.

    Raises:
        ConfigError: The host is unknown or the port is taken or not allowed.
    """
    place = _place(host, port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {place}: {error.strerror}; pass an address of this machine") from error
    try:
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(
            f"cannot listen on {place}: {reason}; stop the program that holds the port, or choose another address "
            f"with {option} (0 takes a free one)" + (" or --host" if option == "--port" else "")
        ) from error


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place_of(listener: socket.socket) -> str:
    """Return ``HOST:PORT`` of a listening socket."""
    return _place(*listener.getsockname()[:2])


def _logging(access_log: bool) -> dict[str, Any]:
    from uvicorn.config import LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    config["loggers"]["uvicorn.access"]["level"] = "INFO" if access_log else "WARNING"
    return config


def run_app(
    app: Any,
    listener: socket.socket,
    program: str,
    details: str,
    *,
    http: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
    access_log: bool = False,
) -> None:
    """Serve an application until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        listener: Where it listens already.
        program: Begins the line on stdout that says that the application is ready, and where.
        details: Ends that line.
        http: Protocol of each connection.
        access_log: Whether every request is logged.
    """
    import uvicorn

    place = place_of(listener)

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            typer.echo(f"{program}: listening on http://{place}, {details}")

    config = server_config(app, http=http, log_config=_logging(access_log), access_log=access_log)
    AnnouncingServer(config).run(sockets=[listener])


def server_config(
    app: Any,
    *,
    http: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
    log_config: dict[str, Any] | None = None,
    access_log: bool = False,
) -> uvicorn.Config:
    """Return how every server of ours is set up.

    Args:
        app: The application.
        http: Protocol of each connection.
        log_config: Of uvicorn; where left out, its loggers stay as this process has set them up.
        access_log: Whether uvicorn logs every request.
    """
    import uvicorn

    return uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        ws="none",
        lifespan="on",
        log_config=log_config,
        access_log=access_log,
        server_header=False,
        proxy_headers=False,  # nobody asks for the client's address
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
