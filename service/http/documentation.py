"""The routes as OpenAPI shows them; `service.http.routes` replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor

from service.http.asked import PARAMETERS
from service.http.parameters import Parameters
from service.http.reply import JSON, REPLY
from service.http.schemas import (
    BatchReply,
    ErrorCode,
    ErrorReply,
    HistoryReply,
    ItemsReply,
    ModelsReply,
    RecommendReply,
    SimilarReply,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import APIRouter
    from starlette.types import Receive, Scope, Send

    from service.http.errors import Errors
    from service.http.reply import Reply
    from service.http.routes import Routes
    from service.settings import Settings

    Answer = Callable[[Scope, Receive], Awaitable[Reply]]

_EVERYWHERE = (
    ErrorCode.INVALID_REQUEST,
    ErrorCode.UNAUTHORIZED,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.BODY_TOO_LONG,
    ErrorCode.URI_TOO_LONG,
    ErrorCode.HEADERS_TOO_LONG,
    ErrorCode.INTERNAL,
    ErrorCode.OVERLOADED,
    ErrorCode.TIMED_OUT,
)
_ASKED = (
    ErrorCode.MISSING_USER_ID,
    ErrorCode.INVALID_ID,
    ErrorCode.ID_TOO_LONG,
    ErrorCode.TOO_MANY_IDS,
    ErrorCode.INVALID_K,
    ErrorCode.INVALID_FLAG,
    ErrorCode.INVALID_SCORE,
    ErrorCode.INVALID_BODY,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.UNKNOWN_CATEGORY,
    ErrorCode.UNKNOWN_MODEL,
    ErrorCode.NOT_READY,
)
_LOOKED_UP = (
    ErrorCode.INVALID_ID,
    ErrorCode.ID_TOO_LONG,
    ErrorCode.REPEATED_PARAMETER,
    ErrorCode.UNKNOWN_MODEL,
    ErrorCode.NOT_FOUND,
    ErrorCode.NOT_READY,
)


class _IdConvertor(Convertor[str]):
    """Any id in a path, with slashes and line breaks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _IdConvertor())


def _answering(answer: Answer) -> type[APIRoute]:
    """Return a class of routes that FastAPI documents and that reply by themselves.

    FastAPI's general way from a request to some values, and to a reply, takes as long as finding the answer, and it
    reads more loosely than the document says.
    """

    class AnsweringRoute(APIRoute):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.app = self._respond

        async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope[REPLY] = reply = await answer(scope, receive)
            await reply.send(send)

    return AnsweringRoute


def _by_reference(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Name the schema of error replies, which FastAPI would take for plain text on a route that replies with that."""
    for response in responses.values():
        del response["model"]
        response["content"][JSON]["schema"] = {"$ref": f"#/components/schemas/{ErrorReply.__name__}"}
    return responses


def add_routes(router: APIRouter, routes: Routes, errors: Errors, settings: Settings) -> None:
    """Add the routes.

    Args:
        router: The application's own: each router within a router is one more way for every request to go.
        routes: What they reply.
        errors: Error replies, for examples.
        settings: Limits of a request.
    """
    shown = Parameters(settings)

    def add(path: str, answer: Answer, reply: Any, says: tuple[str, str], *codes: ErrorCode, **operation: Any) -> None:
        async def shape() -> None:
            """Stand for the signature, which the operation describes instead."""

        router.add_api_route(
            path,
            shape,
            methods=["POST" if "requestBody" in operation else "GET"],
            name=path.strip("/").split("/")[-1],
            summary=says[0],
            description=says[1],
            route_class_override=_answering(answer),
            response_model=reply,
            responses=errors.documented(*_EVERYWHERE, *codes),
            openapi_extra=operation,
        )

    add(
        "/recommend",
        routes.recommend,
        RecommendReply,
        (
            "Recommend items to a user",
            "The best `k` items for a user; fewer only where fewer are left. Parameters come in the address, in a JSON "
            "body or in both, each once.",
        ),
        *_ASKED,
        ErrorCode.REPEATED_PARAMETER,
        parameters=shown.query(*PARAMETERS),
        requestBody=shown.body(),
    )
    add(
        "/recommend/batch",
        routes.batch,
        BatchReply,
        ("Recommend items to many users", "All questions are answered, in order, or none is."),
        *_ASKED,
        ErrorCode.TOO_MANY_REQUESTS_IN_BATCH,
        requestBody=shown.batch(),
    )
    add(
        "/items",
        routes.items,
        ItemsReply,
        ("Describe items", "Titles and categories of some items, which come as often as the address names `item_id`."),
        *(code for code in _LOOKED_UP if code is not ErrorCode.NOT_FOUND),
        ErrorCode.TOO_MANY_IDS,
        parameters=shown.query("item_id", "model"),
    )
    add(
        "/items/{item_id:id}/similar",
        routes.similar,
        SimilarReply,
        ("List similar items", "The items whose vectors are closest in direction to this one's."),
        *_LOOKED_UP,
        ErrorCode.INVALID_K,
        ErrorCode.UNKNOWN_ITEM,
        parameters=[shown.path("item_id", "the data set's own id, percent-encoded"), *shown.query("k", "model")],
    )
    add(
        "/users/{user_id:id}/history",
        routes.history,
        HistoryReply,
        ("List what a user has interacted with", "The user's training items, in the order of the item rows."),
        *_LOOKED_UP,
        ErrorCode.INVALID_LIMIT,
        ErrorCode.UNKNOWN_USER,
        parameters=[
            shown.path("user_id", "the data set's own id, percent-encoded"),
            shown.limit(),
            *shown.query("model"),
        ],
    )
    add(
        "/models",
        routes.models,
        ModelsReply,
        ("List the served models", "Every served bundle: what it is, what it was trained on and how well it did."),
    )
    add(
        "/models/{name}/certificate",
        routes.certificate,
        dict[str, Any],
        ("Show a model's certificate", "The proof, as exported, that DVIB costs nothing when this model answers."),
        ErrorCode.UNKNOWN_MODEL,
        ErrorCode.NOT_FOUND,
        parameters=[shown.path("name", "a name from /models", {"type": "string", "minLength": 1})],
    )
    add(
        "/healthz",
        routes.healthz,
        Status,
        ("Is the process alive?", "Always 200 while the process can answer at all."),
    )
    add(
        "/readyz",
        routes.readyz,
        Status,
        ("Can it recommend?", "200 when every model is loaded and its worker runs, else 503."),
        ErrorCode.NOT_READY,
    )

    @router.get(
        "/metrics",
        summary="Show what is measured",
        description="Of all worker processes together, in Prometheus' text format.",
        response_class=PlainTextResponse,
        responses=_by_reference(errors.documented(*_EVERYWHERE)),
    )
    async def metrics() -> Response:
        page, content_type = routes.metrics()
        return Response(page, headers={"Content-Type": content_type})
