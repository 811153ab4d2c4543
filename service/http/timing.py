"""How long a reply took, told to whoever asks: a page that compares models wants the service's own clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from service.http.reply import Header

ASKED_FOR = b"x-server-timing"
"""Header of a request, with any value. Who does not send it is spared the work."""


def server_timing(began: float) -> Header:
    """Return the header ``Server-Timing`` of a reply that is sent now.

    Args:
        began: When the request came, of ``time.perf_counter``.
    """
    return (b"server-timing", b"app;dur=%.4f" % (1e3 * (time.perf_counter() - began)))


def timed(send: Send, began: float) -> Send:
    """Return a ``send`` that adds the header ``Server-Timing``.

    Args:
        send: Of the request.
        began: See `server_timing`.
    """

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], server_timing(began)]
        await send(message)

    return sending
