"""The HTTP routes: what each replies. How they are shown is in `service.http.documentation`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from service.http.asked import Limits
from service.http.batching import QueueFullError
from service.http.body import LARGE, BodyReader, is_json
from service.http.errors import Refusal
from service.http.query import parameters
from service.http.reading import read_body
from service.http.reply import Reply, json_reply
from service.http.schemas import ErrorCode
from service.observe.page import page

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from starlette.types import Receive, Scope

    from service.http.desk import Desk
    from service.http.errors import Errors
    from service.settings import Settings

    T = TypeVar("T")

_PAGE = {number: frozenset({number, "model"}) for number in ("k", "limit")}
_ITEMS = frozenset({"item_id", "model"})


class Routes:
    """What the routes reply. Each takes an ASGI scope and ``receive``.

    Args:
        desk: Answers.
        errors: Error replies.
        settings: Limits of a request.
    """

    def __init__(self, desk: Desk, errors: Errors, settings: Settings) -> None:
        self._desk = desk
        self._errors = errors
        self._settings = settings
        self._limits = Limits(settings)
        self._bodies = BodyReader(settings)

    async def recommend(self, scope: Scope, receive: Receive) -> Reply:
        """Reply to one request, in the query string, in the body or in both."""
        query = scope["query_string"]
        body = await read_body(receive, self._settings.max_body_bytes)
        if not body:
            return await self._desk.recommend_plainly(query)
        asked = await self._read(scope, body, lambda: self._bodies.one(body, query))
        return self._errors.reply(asked) if isinstance(asked, Refusal) else await self._desk.recommend(asked)

    async def batch(self, scope: Scope, receive: Receive) -> Reply:
        """Reply to a batch, which is all in the body."""
        body = await read_body(receive, self._settings.max_body_bytes)
        batch = await self._read(scope, body, lambda: self._bodies.many(body))
        return self._errors.reply(batch) if isinstance(batch, Refusal) else await self._desk.recommend_batch(batch)

    async def items(self, scope: Scope, _receive: Receive) -> Reply:
        """Reply with what is known of some items."""
        given = parameters(scope["query_string"], _ITEMS)
        if isinstance(given, Refusal):
            return self._errors.reply(given)
        item_ids = given.get("item_id", [])
        wrong = self._limits.many_ids(item_ids, "item_id")
        return self._errors.reply(wrong) if wrong else await self._desk.items(item_ids, given.get("model"))

    async def similar(self, scope: Scope, _receive: Receive) -> Reply:
        """Reply with the items similar to one."""
        given = self._page(scope, b"/items/", b"/similar", "item_id", "k")
        return self._errors.reply(given) if isinstance(given, Refusal) else await self._desk.similar(*given)

    async def history(self, scope: Scope, _receive: Receive) -> Reply:
        """Reply with a user's training items."""
        given = self._page(scope, b"/users/", b"/history", "user_id", "limit")
        return self._errors.reply(given) if isinstance(given, Refusal) else await self._desk.history(*given)

    async def models(self, _scope: Scope, _receive: Receive) -> Reply:
        """Reply with what is served."""
        return self._desk.models

    async def certificate(self, scope: Scope, _receive: Receive) -> Reply:
        """Reply with a model's certificate."""
        return self._desk.certificate(scope["path_params"]["name"])

    async def healthz(self, _scope: Scope, _receive: Receive) -> Reply:
        """Reply that the process can reply."""
        return json_reply({"status": "alive"})

    async def readyz(self, _scope: Scope, _receive: Receive) -> Reply:
        """Reply whether recommendations can be asked for."""
        return json_reply({"status": "ready"}) if self._desk.ready else self._errors.reply(ErrorCode.NOT_READY)

    def metrics(self) -> tuple[bytes, str]:
        """Return what is measured, and its content type."""
        return page(self._desk.metrics.cells)

    async def _read(self, scope: Scope, body: bytes, read: Callable[[], T | Refusal]) -> T | Refusal:
        types = [value for name, value in scope["headers"] if name == b"content-type"]
        codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
        if len(types) != 1 or not is_json(types[0]) or any(value.lower() != b"identity" for value in codings):
            return Refusal(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
        if len(body) < LARGE:
            return read()
        try:
            return await self._desk.aside(read)
        except QueueFullError:
            return Refusal(ErrorCode.OVERLOADED)

    def _page(
        self, scope: Scope, before: bytes, after: bytes, what: str, number: str
    ) -> tuple[str, int, str | None] | Refusal:
        """Return the id in the path, the number of items and the model that a request names."""
        raw: bytes = scope["raw_path"]
        if not (raw.startswith(before) and raw.endswith(after)):
            return Refusal(ErrorCode.NOT_FOUND)  # the framework takes %73imilar for similar
        name = unquote(raw[len(before) : len(raw) - len(after)].decode("latin-1"), errors="surrogateescape")
        given = parameters(scope["query_string"], _PAGE[number])
        if isinstance(given, Refusal):
            return given
        code = ErrorCode.INVALID_K if number == "k" else ErrorCode.INVALID_LIMIT
        count = given.get(number, self._settings.default_k if number == "k" else self._settings.max_k)
        wrong = self._limits.number(count, code) or self._limits.one_id(name, what)
        return wrong or (name, count, given.get("model"))
