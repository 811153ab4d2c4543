"""The desk: checked questions in, replies out, whichever way they came."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import orjson

from service.http.asked import Asked
from service.http.batching import Batcher, EngineFailedError, QueueFullError, Taker, recommend_all
from service.http.documents import (
    describe,
    history_document,
    items_document,
    recommend_document,
    similar_document,
)
from service.http.errors import Refusal
from service.http.query import QueryReader
from service.http.reply import Reply, json_reply
from service.http.schemas import ErrorCode
from service.http.split import Split, parse_split
from service.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from service.engine import Engine
    from service.http.errors import Errors
    from service.settings import Settings
    from service.values import Recommendation

T = TypeVar("T")
_NOT_READY = Refusal(ErrorCode.NOT_READY)
_LOOKUPS = 2
"""Threads for what is looked up beside the queues: items, similar ones and histories."""
_AT_ONCE = 1000
"""Items that are written into a batch's reply before others get their turn."""


class Ticket(NamedTuple):
    """A question that a model has been asked.

    Attributes:
        user_id: Whom it is about.
        model: The model's name.
        batcher: Its queue.
    """

    user_id: str
    model: str
    batcher: Batcher


class Desk:
    """Answers over a set of models. Open between the application's startup and its shutdown.

    Args:
        engines: Model name to loaded engine; the first is the default model.
        settings: Limits of requests and queues; which model answers whom.
        errors: Error replies.

    Attributes:
        metrics: What is measured in this process. Where other processes add to them, make the desk in its own.

    Raises:
        ConfigError: The split names what is not served, or no share.
    """

    def __init__(self, engines: Mapping[str, Engine], settings: Settings, errors: Errors) -> None:
        self._engines = engines
        self._default = next(iter(engines), None)
        self._settings = settings
        self._errors = errors
        shares = parse_split(settings.split, list(engines))
        self._split = Split(shares, settings.split_salt)
        self._read = QueryReader(settings)
        manifests = {name: engine.manifest for name, engine in engines.items()}
        self._versions = {name: manifest.version for name, manifest in manifests.items()}
        self._categories = {name: frozenset(engine.categories) for name, engine in engines.items()}
        providers = {name: engine.providers for name, engine in engines.items()}
        self.metrics = Metrics(manifests, settings.metrics_dir, providers)
        self._batchers: dict[str, Batcher] = {}
        self._lookups = 0
        self._pool: ThreadPoolExecutor | None = None
        categories = {name: engine.categories for name, engine in engines.items()}
        users = {name: engine.some_users(settings.example_users) for name, engine in engines.items()}
        self.models = json_reply(describe(manifests, shares, categories, users, providers))

    @property
    def ready(self) -> bool:
        """Whether every model can be asked."""
        return bool(self._batchers)

    @property
    def batchers(self) -> Mapping[str, Batcher]:
        """Model name to running batcher; empty where the desk is not open."""
        return self._batchers

    def open(self) -> None:
        """Start the models' queues in the running event loop."""
        self._pool = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        for name, engine in self._engines.items():
            self._batchers[name] = Batcher(
                engine,
                name=name,
                max_batch=self._settings.max_batch,
                max_queue=self._settings.max_queue,
                metrics=self.metrics.models[name],
            )

    def close(self) -> None:
        """End the queues; see `Batcher.close`."""
        closing = list(self._batchers.values())
        self._batchers.clear()
        for batcher in closing:
            batcher.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def ask_plainly(self, query: bytes, taker: Taker) -> Ticket | Reply:
        """Ask what a query string asks; see `ask`."""
        asked = self._read(query)
        return self._errors.reply(asked) if isinstance(asked, Refusal) else self.ask(asked, taker)

    def ask(self, asked: Asked, taker: Taker) -> Ticket | Reply:
        """Ask the model that is to answer; or return the reply, where it is not asked."""
        model = self._model(asked)
        if isinstance(model, Refusal):
            return self._errors.reply(model)
        batcher, request = self._batchers[model], asked.request
        try:
            batcher.take(request, taker)
        except QueueFullError:
            return self._errors.reply(ErrorCode.OVERLOADED)._replace(model=model)
        return Ticket(request.user_id, model, batcher)

    def reply(self, ticket: Ticket, answer: Recommendation) -> Reply:
        """Return the reply to a question that has its answer."""
        user_id, model, _ = ticket
        version = self._versions[model]
        return json_reply(recommend_document(user_id, model, version, answer), model, version, answer.source)

    def failed(self, ticket: Ticket) -> Reply:
        """Return the reply to a question whose model has failed."""
        return self._errors.reply(ErrorCode.INTERNAL)._replace(model=ticket.model)

    async def recommend_plainly(self, query: bytes) -> Reply:
        """Reply to a request that is all in its query string."""
        asked = self._read(query)
        return self._errors.reply(asked) if isinstance(asked, Refusal) else await self.recommend(asked)

    async def recommend(self, asked: Asked) -> Reply:
        """Reply to one request for recommendations."""
        answer: asyncio.Future[Recommendation] = asyncio.get_running_loop().create_future()
        ticket = self.ask(asked, answer)
        if isinstance(ticket, Reply):
            return ticket
        try:
            return self.reply(ticket, await answer)
        except EngineFailedError:
            return self.failed(ticket)
        except asyncio.CancelledError:
            answer.cancel()
            ticket.batcher.sweep_soon()
            raise

    async def recommend_batch(self, batch: Sequence[Asked]) -> Reply:
        """Reply to many requests, all or none, in order."""
        models: list[str] = []
        for position, asked in enumerate(batch):
            model = self._model(asked)
            if isinstance(model, Refusal):
                return self._errors.reply(model._replace(position=position))
            models.append(model)
        questions = [(self._batchers[model], asked.request) for model, asked in zip(models, batch, strict=True)]
        try:
            answers = await recommend_all(questions)
        except QueueFullError:
            return self._errors.reply(ErrorCode.OVERLOADED)
        except EngineFailedError:
            return self._errors.reply(ErrorCode.INTERNAL)
        parts: list[bytes] = []
        written = 0
        for (_, request), model, answer in zip(questions, models, answers, strict=True):
            document = recommend_document(request.user_id, model, self._versions[model], answer)
            parts.append(orjson.dumps(document))
            written += len(answer.items)
            if written > _AT_ONCE:
                written = 0
                await asyncio.sleep(0)
        return Reply(200, b'{"replies":[' + b",".join(parts) + b"]}")

    async def similar(self, item_id: str, k: int, model: str | None) -> Reply:
        """Reply to the question which items are similar to one."""
        name = self._named(model)
        if isinstance(name, Refusal):
            return self._errors.reply(name)
        engine = self._engines[name]

        def look() -> Reply:
            items = engine.similar(item_id, k)
            if items is None:
                return self._errors.reply(ErrorCode.UNKNOWN_ITEM)
            version = self._versions[name]
            return json_reply(similar_document(item_id, name, version, items), name, version)

        return await self._look(look)

    async def history(self, user_id: str, limit: int, model: str | None) -> Reply:
        """Reply to the question which training items a user has."""
        name = self._named(model)
        if isinstance(name, Refusal):
            return self._errors.reply(name)
        engine = self._engines[name]

        def look() -> Reply:
            items = engine.history(user_id)
            if items is None:
                return self._errors.reply(ErrorCode.UNKNOWN_USER)
            version = self._versions[name]
            return json_reply(history_document(user_id, name, version, items, limit), name, version)

        return await self._look(look)

    async def items(self, item_ids: Sequence[str], model: str | None) -> Reply:
        """Reply with what is known of some items."""
        name = self._named(model)
        if isinstance(name, Refusal):
            return self._errors.reply(name)
        engine, version = self._engines[name], self._versions[name]
        return await self._look(
            lambda: json_reply(items_document(name, version, engine.items(item_ids)), name, version)
        )

    def certificate(self, name: str) -> Reply:
        """Reply with a model's certificate, as its bundle has it."""
        if name not in self._engines:
            return self._errors.reply(ErrorCode.UNKNOWN_MODEL)
        return Reply(200, self._engines[name].certificate, model=name, version=self._versions[name])

    async def aside(self, call: Callable[[], T]) -> T:
        """Do what may take long in a thread of the desk's own, beside the models' queues.

        Raises:
            QueueFullError: ``max_queue`` such calls are under way already, or the desk is closed.
        """
        if self._pool is None or self._lookups >= self._settings.max_queue:
            raise QueueFullError
        self._lookups += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        finally:
            self._lookups -= 1

    async def _look(self, look: Callable[[], Reply]) -> Reply:
        try:
            return await self.aside(look)
        except QueueFullError:
            return self._errors.reply(ErrorCode.OVERLOADED)

    def _model(self, asked: Asked) -> str | Refusal:
        """Return which model answers, or why none does."""
        request, model = asked
        name = self._named(self._split(request.user_id) if model is None else model)
        if isinstance(name, str) and request.category is not None and request.category not in self._categories[name]:
            return Refusal(ErrorCode.UNKNOWN_CATEGORY)
        return name

    def _named(self, model: str | None) -> str | Refusal:
        name = self._default if model is None else model
        if name is not None and name not in self._engines:
            return Refusal(ErrorCode.UNKNOWN_MODEL)
        return _NOT_READY if name is None or name not in self._batchers else name
