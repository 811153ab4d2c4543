"""``dvib-serve``: options, the listening socket, and the server's life."""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.settings import load_settings, parse_bundles
from training.common import console
from training.common.errors import ConfigError

if TYPE_CHECKING:
    from service.settings import Settings

_BACKLOG = 2048
_SHUTDOWN_S = 5

HELP = """Serve recommendations from exported bundles over HTTP.

The first bundle is the default model. Options win over `DVIB_SERVE_*` variables (`DVIB_SERVE_PORT=8080`,
`DVIB_SERVE_BUNDLES=baseline=DIR,dvib=DIR`, ...).

**Examples**

    dvib-serve --bundle runs/dvib-bundle

    dvib-serve --bundle baseline=bundles/baseline --bundle dvib=bundles/dvib --port 8080

    curl -X POST 'http://127.0.0.1:8000/recommend?user_id=196&k=5&model=dvib'
"""

app = console.make_app(HELP)


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


def run_server(settings: Settings) -> None:
    """Bind, load every bundle, serve until SIGTERM or Ctrl-C.

    Args:
        settings: The bundles among them.

    Raises:
        ConfigError: A bundle's name or the listening address cannot be used.
        BundleError: A bundle is missing, altered or inconsistent.
    """
    folders = parse_bundles(settings.bundles)
    # uvicorn shuts down gracefully, then raises the signal again for the handler it found: that is the exit code.
    signal.signal(signal.SIGTERM, _stop)
    with listen(settings.host, settings.port) as listener:
        import uvicorn

        from export.publish import resolve
        from service.app import create_app
        from service.engine import Engine

        engines = {
            name: Engine.load(resolve(folder), index_threads=settings.index_threads) for name, folder in folders.items()
        }
        address = _place(*listener.getsockname()[:2])
        models = ", ".join(
            f"{name} ({engine.manifest.model} {engine.manifest.version})" for name, engine in engines.items()
        )

        class AnnouncingServer(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                typer.echo(f"dvib-serve: listening on http://{address}, models: {models}")

        config = uvicorn.Config(
            create_app(engines, settings),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=_logging(settings.access_log),
            access_log=settings.access_log,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        AnnouncingServer(config).run(sockets=[listener])


@app.command(help=HELP)
def serve(
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A model's name and its bundle, or its root of published versions; repeatable. DIR alone takes its "
            "name.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one. [default: 8000]")] = None,
    access_log: Annotated[
        bool | None, typer.Option("--access-log/--no-access-log", help="Log every request, user ids too. [default: no]")
    ] = None,
) -> None:
    """Serve recommendations from exported bundles over HTTP."""
    run_server(load_settings(bundles=tuple(bundle) if bundle else None, host=host, port=port, access_log=access_log))
