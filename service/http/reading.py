"""Bodies of requests, read within bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive

_LINGERING_BYTES = 2**26


class BodyTooLongError(Exception):
    """A body is longer than allowed."""


class NoRoomError(Exception):
    """The bodies of all requests in work would be too long together."""


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def read_body(receive: Receive, most: float, take: Callable[[int], None] = lambda _: None) -> bytes:
    """Read a request's body.

    Args:
        receive: Of the request.
        most: Bytes.
        take: Told how long each part is, before it is kept; may raise ``NoRoomError``.

    Raises:
        BodyTooLongError: It is longer.
        ClientGoneError: It ends before its end.
    """
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        more = message.get("more_body", False)
        length += len(part)
        if length > most:
            raise BodyTooLongError
        take(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def linger(receive: Receive, seconds: float) -> None:
    """Take in the rest of a refused body, for some time and up to some length.

    Closed at once, the connection would be reset while the client still sends, and its reply might be lost with it.
    """
    taken = 0
    try:
        async with asyncio.timeout(seconds):
            while taken < _LINGERING_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body which has been read, and then what comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
