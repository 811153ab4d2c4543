"""What is noted of each reply: counts, how long it took and, where asked for, a line in the access log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.routing import Route

from service.observe.logs import ACCESS
from service.observe.metrics import Metrics

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Scope

    from service.http.desk import Desk
    from service.http.reply import Reply

_LOG = logging.getLogger(ACCESS)
OTHER = "other"
"""Stands for every path that no route has: a client may make up as many as it likes."""
_MOST_TEXT = 2048
"""Characters of a path and of a query string in the access log."""


class Ledger:
    """Notes replies, each when it begins to be sent.

    Args:
        app: The application; its desk's metrics, where it has any, take the counts.
        access_log: Whether each reply is logged.

    Attributes:
        metrics: Take the counts.
    """

    def __init__(self, app: FastAPI, *, access_log: bool) -> None:
        desk: Desk | None = getattr(app.state, "desk", None)
        self.metrics = Metrics({}) if desk is None else desk.metrics
        self._access_log = access_log
        self._paths = {route.path for route in app.routes if isinstance(route, Route) and "{" not in route.path}

    def note(self, scope: Scope, status: int, reply: Reply | None, began: float) -> None:
        """Note a reply.

        Args:
            scope: Of the request.
            status: Of the reply.
            reply: What the service's own routes reply; None for those of the framework.
            began: When the request came, of ``time.perf_counter``.
        """
        seconds = time.perf_counter() - began
        route = scope["path"]
        if route not in self._paths:
            route = getattr(scope.get("route"), "path_format", OTHER)
        if reply is None:
            self.metrics.reply(route, "", status, seconds)
        else:
            self.metrics.reply(route, reply.model, status, seconds)
            if reply.code:
                self.metrics.refused(reply.code)
        if self._access_log:
            self._log(scope, status, reply, seconds)

    def _log(self, scope: Scope, status: int, reply: Reply | None, seconds: float) -> None:
        more = {"model": reply.model, "source": reply.source, "version": reply.version} if reply else {}
        _LOG.info(
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"][:_MOST_TEXT],
                "query": scope["query_string"][:_MOST_TEXT].decode("latin-1"),
                "status": status,
                "ms": round(1e3 * seconds, 3),
                **{name: value for name, value in more.items() if value},
            },
        )
