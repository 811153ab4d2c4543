"""A reply before it is sent: status, body and headers of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from starlette.types import Send

Header = tuple[bytes, bytes]

JSON = "application/json"
_CONTENT_TYPE: Header = (b"content-type", JSON.encode())
CLOSE: Header = (b"connection", b"close")
REPLY = "dvib.reply"
"""Key of a scope, by which whoever looks after replies finds what is sent."""


class Reply(NamedTuple):
    """A JSON reply.

    Attributes:
        status: Of HTTP.
        body: JSON.
        headers: Those besides content type and length.
        model: That answered; empty where none did.
        version: Of that model's bundle.
        source: Where the order of the items comes from; empty where they are none.
        code: Of an error.
    """

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    model: str = ""
    version: str = ""
    source: str = ""
    code: str = ""

    def headed(self, *more: Header) -> list[Header]:
        """Return all its headers.

        Args:
            more: Headers that have to do with the request and not with what is replied.
        """
        return [_CONTENT_TYPE, (b"content-length", b"%d" % len(self.body)), *self.headers, *more]

    def start(self, *more: Header) -> dict[str, Any]:
        """Return the ASGI message that begins it, with more headers."""
        return {"type": "http.response.start", "status": self.status, "headers": self.headed(*more)}

    async def send(self, send: Send, *more: Header) -> None:
        """Send it, with more headers."""
        await send(self.start(*more))
        await send({"type": "http.response.body", "body": self.body})


def json_reply(document: object, model: str = "", version: str = "", source: str = "") -> Reply:
    """Return a reply of plain values, which no schema is asked about again; see `Reply`."""
    return Reply(200, orjson.dumps(document), (), model, version, source)
