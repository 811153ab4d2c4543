"""What a forked worker runs: the application over the engines that its parent has loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.http.app import create_app
from service.http.gate import Gate
from service.http.protocol import Protocol
from service.observe.logs import configure_logging
from service.process.worker import serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from service.engine import Engine
    from service.settings import Settings


def work(
    engines: Mapping[str, Engine],
    settings: Settings,
    listener: socket.socket,
    lease: int,
    *,
    name: str,
    on_ready: Callable[[], None],
) -> None:
    """Answer requests until the lease ends.

    Args:
        engines: Model name to loaded engine; the first is the default model.
        settings: Of the service.
        listener: A listening socket that other workers accept from, too.
        lease: See `service.process.worker.DrainingServer`.
        name: This worker's in the log.
        on_ready: Called when it listens.
    """
    configure_logging(settings, name)
    gate = Gate(create_app(engines, settings), settings)
    serve(
        gate,
        Protocol.to(gate, settings),
        listener,
        lease,
        drain_s=settings.drain_s,
        on_ready=on_ready,
    )
