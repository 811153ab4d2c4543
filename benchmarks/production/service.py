"""The service that is measured, with the clients that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import production
from benchmarks.http_client import Server, running, serve_arguments
from benchmarks.load.process import Others
from benchmarks.load.questions import Asked
from benchmarks.production.clients import MODEL, Clients, Seen, clients_of

_CONCURRENCY = 32
_SATURATION_S = 5.0


@contextmanager
def service_and_clients(
    asked: Asked, k: int, seed: int, *, variables: Mapping[str, str], clients: int = 1, root: Path | None = None
) -> Iterator[tuple[Server, Clients]]:
    """Run the service with a bundle, and client processes that are ready to ask it, until the block ends.

    Args:
        asked: The bundle.
        k: Items per reply.
        seed: Of what the clients draw.
        variables: Settings of the service, as environment variables.
        clients: How many client processes.
        root: Where versions of the bundle are published, to be served in its place; replies may name any of them.

    Raises:
        ServerError: The service or a client did not start.
    """
    arguments = serve_arguments({MODEL: root or asked.folder})
    with (
        running(production.SERVICE, *arguments, variables=variables) as server,
        clients_of(server, asked, k, clients, seed, any_version=root is not None) as ready,
    ):
        yield server, ready


def find_saturation(
    clients: Clients, most_seconds: float, on_step: Callable[[str], None], concurrency: int = _CONCURRENCY
) -> Seen:
    """Load in a closed loop: nobody gets more replies per second.

    Args:
        clients: Who asks.
        most_seconds: It takes no longer.
        on_step: Told that it begins.
        concurrency: Requests at a time.
    """
    on_step("finding the saturation")
    return clients.closed(concurrency, min(_SATURATION_S, most_seconds))


def cores_of(others: Others) -> float:
    """Return how many cores others kept busy; NaN where one of our processes has ended and cannot be asked."""
    try:
        return others.cores()
    except OSError:
        return float("nan")
