"""Everything that ``dvib-serve`` starts, and stops again."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import typer

from service.observe.logs import configure_logging
from service.observe.metrics import ReloadMetrics
from service.process.metrics_folder import metrics_folder
from service.process.server import listen, place_of
from service.process.signals import ignore_from_now_on
from service.process.supervisor import Supervisor
from service.process.watch import Watch
from service.settings import parse_bundles

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from service.settings import Settings

_LOG = logging.getLogger(__name__)
_ADMIN_HOST = "127.0.0.1"


def run_service(settings: Settings) -> None:
    """Bind, load every bundle, serve until SIGTERM or Ctrl-C.

    Args:
        settings: The bundles among them.

    Raises:
        ConfigError: A bundle's name or a listening address cannot be used.
        BundleError: A bundle is missing, altered or inconsistent.
    """
    folders = parse_bundles(settings.bundles)
    configure_logging(settings, "supervisor")
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        admin = None
        if settings.admin_port is not None:
            admin = stack.enter_context(listen(_ADMIN_HOST, settings.admin_port, option="--admin-port"))
        metrics = stack.enter_context(metrics_folder(settings.metrics_dir))
        settings = settings.model_copy(update={"metrics_dir": metrics})
        reloads = ReloadMetrics(metrics)
        stack.callback(reloads.close)
        asyncio.run(_supervise(settings, folders, listener, admin, reloads))


async def _supervise(
    settings: Settings,
    folders: Mapping[str, Path],
    listener: socket.socket,
    admin: socket.socket | None,
    reloads: ReloadMetrics,
) -> None:
    supervisor = Supervisor(settings, Watch(folders), listener, reloads)
    place = place_of(listener)

    def announce(models: str) -> None:
        if admin is not None:
            _LOG.info("admin endpoint on http://%s", place_of(admin))
        typer.echo(f"dvib-serve: listening on http://{place}, models: {models}")

    try:
        async with _admin_endpoint(supervisor, settings, admin, reloads):
            await supervisor.run(announce)
    finally:
        ignore_from_now_on(asyncio.get_running_loop())


@asynccontextmanager
async def _admin_endpoint(
    supervisor: Supervisor, settings: Settings, listener: socket.socket | None, reloads: ReloadMetrics
) -> AsyncIterator[None]:
    if listener is None or settings.admin_token is None:
        yield
        return
    # Who does without it does without its libraries.
    from service.process.admin import AdminServer, create_admin

    server = AdminServer(create_admin(supervisor, settings.admin_token.get_secret_value(), reloads.cells))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
