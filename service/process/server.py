"""A listening socket, and the life of the server behind it: any application, with the settings of ``dvib-serve``."""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import typer

from training.common.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

_BACKLOG = 2048
_SHUTDOWN_S = 5


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    It listens from the start, and not only when the models are loaded: two sockets can be *bound* to one port, so only
    listening tells whether the port is free. Clients that connect early wait in the backlog.

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
            "with --port (0 takes a free one) or --host"
        ) from error


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _logging(access_log: bool) -> dict[str, Any]:
    from uvicorn.config import LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["uvicorn.error"]["level"] = "WARNING"
    config["loggers"]["uvicorn.access"]["level"] = "INFO" if access_log else "WARNING"
    return config


def _stop(_signal: int, _frame: object) -> None:
    sys.exit(0)


def end_at_sigterm() -> None:
    """Make SIGTERM end this process with exit code 0, while it loads and after it has served.

    uvicorn shuts down gracefully, then raises the signal again for the handler that it found: this one.
    """
    signal.signal(signal.SIGTERM, _stop)


def run_app(app: FastAPI, listener: socket.socket, program: str, details: str, *, access_log: bool = False) -> None:
    """Serve an application until SIGTERM or Ctrl-C.

    Args:
        app: The application.
        listener: Where it listens already.
        program: Begins the line on stdout that says that the application is ready, and where.
        details: Ends that line.
        access_log: Whether every request is logged.
    """
    import uvicorn

    address = _place(*listener.getsockname()[:2])

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            typer.echo(f"{program}: listening on http://{address}, {details}")

    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=_logging(access_log),
        access_log=access_log,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    AnnouncingServer(config).run(sockets=[listener])
