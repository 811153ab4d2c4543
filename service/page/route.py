"""Sends the files of the page. They are read once, hold nothing secret and ask the service's own routes for the rest.

Where the service has a key, the page comes without it, for a browser has no way to send one with an address. The page
asks for the key, keeps it in memory alone and sends it with everything that it asks for.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.routing import Route

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.types import Receive, Scope, Send

    from service.http.reply import Header

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/script.js": ("script.js", "text/javascript; charset=utf-8"),
    "/page/panels.js": ("panels.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
PATHS = frozenset(_FILES)
"""The addresses of the page, which need no key."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, nothing inline, and no text that becomes markup or code."""

_HEADERS = (
    (b"cache-control", b"no-cache"),  # kept, and asked for again: an update is seen at once
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class PageFile:
    """An ASGI application that sends one file, or says that the client has it.

    Args:
        body: Of the file.
        content_type: Of the file.
    """

    def __init__(self, body: bytes, content_type: str) -> None:
        self._body = body
        self._tag = f'"{sha256(body).hexdigest()[:32]}"'.encode()
        self._headers: tuple[Header, ...] = (*_HEADERS, (b"etag", self._tag))
        self._of_body: tuple[Header, ...] = (
            (b"content-type", content_type.encode()),
            (b"content-length", b"%d" % len(body)),
        )

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """See ASGI."""
        if self._is_known(scope):
            await send({"type": "http.response.start", "status": 304, "headers": [*self._headers]})
            await send({"type": "http.response.body", "body": b""})
        else:
            headers = [*self._of_body, *self._headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self._body})

    def _is_known(self, scope: Scope) -> bool:
        given = b",".join(value for name, value in scope["headers"] if name == b"if-none-match")
        tags = {tag.strip().removeprefix(b"W/") for tag in given.split(b",")}
        return self._tag in tags or b"*" in tags


def add_page(router: APIRouter) -> None:
    """Add the page's routes. They are for browsers, and OpenAPI does not show them."""
    folder = files("service.page")
    for path, (name, content_type) in _FILES.items():
        file = PageFile((folder / name).read_bytes(), content_type)
        router.routes.append(Route(path, file, methods=["GET"], include_in_schema=False))
