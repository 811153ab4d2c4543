"""The HTTP routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Query, Response

from service.http.batching import QueueFullError
from service.http.errors import JSON
from service.http.query import QueryReader, reading
from service.http.schemas import ErrorCode, ModelsReply, RecommendReply, Status
from service.values import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import APIRouter

    from export.manifest import Manifest
    from service.http.batching import Batcher
    from service.http.errors import Errors
    from service.settings import Settings
    from service.values import Recommendation


def describe(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return the ``/models`` document; the first manifest is the default model's."""
    default = next(iter(manifests), None)
    return {
        "models": [
            {
                "name": name,
                "default": name == default,
                **manifest.model_dump(include={"model", "variant", "preset", "dimension", "version", "metrics"}),
                "n_items": manifest.n_items,
                "dataset": manifest.dataset.model_dump(include={"name", "n_users", "n_items", "n_train"}),
            }
            for name, manifest in manifests.items()
        ]
    }


def recommend_document(user_id: str, model: str, version: str, answer: Recommendation) -> dict[str, Any]:
    """Return the ``/recommend`` document, of the shape of `service.http.schemas.RecommendReply`."""
    return {
        "user_id": user_id,
        "model": model,
        "version": version,
        "source": answer.source,
        "items": [{"item_id": item.item_id, "title": item.title, "score": item.score} for item in answer.items],
    }


def json_reply(document: object) -> Response:
    """Return a reply of plain values, which no schema is asked about again."""
    return Response(orjson.dumps(document), media_type=JSON)


def add_routes(
    router: APIRouter,
    manifests: Mapping[str, Manifest],
    batchers: Mapping[str, Batcher],
    errors: Errors,
    settings: Settings,
) -> None:
    """Add the routes over a set of models.

    Args:
        router: The application's own: each router within a router is one more way for every request to go.
        manifests: Model name to manifest; the first is the default model.
        batchers: Model name to running batcher; empty as long as the service is not ready.
        errors: Error replies.
        settings: Limits of a request.
    """
    default = next(iter(manifests), None)
    models = describe(manifests)

    async def recommend(
        user_id: str = Query(
            description=f"the data set's own id, at most {settings.max_id_bytes} UTF-8 bytes; "
            "an unknown user gets popular items",
            openapi_examples={"a user of ml-100k": {"value": "196"}},
        ),
        k: int = Query(settings.default_k, ge=1, le=settings.max_k, description="number of items"),
        model: str | None = Query(None, description="a name from /models; the default model where left out"),
    ) -> Response:
        """The best `k` items that the user has not interacted with in training."""
        name = default if model is None else model
        if name is not None and name not in manifests:
            return errors.reply(ErrorCode.UNKNOWN_MODEL)
        if name is None or name not in batchers:
            return errors.reply(ErrorCode.NOT_READY)
        try:
            answer = await batchers[name].recommend(Request(user_id, k))
        except QueueFullError:
            return errors.reply(ErrorCode.OVERLOADED, {"Retry-After": "1"})
        return json_reply(recommend_document(user_id, name, manifests[name].version, answer))

    router.add_api_route(
        "/recommend",
        recommend,
        methods=["POST"],
        route_class_override=reading(QueryReader(settings), errors.reply),
        summary="Recommend items to a user",
        response_model=RecommendReply,
        responses=errors.documented(
            ErrorCode.MISSING_USER_ID,
            ErrorCode.INVALID_ID,
            ErrorCode.ID_TOO_LONG,
            ErrorCode.INVALID_K,
            ErrorCode.UNKNOWN_MODEL,
            ErrorCode.NOT_READY,
            ErrorCode.OVERLOADED,
            ErrorCode.INTERNAL,
        ),
    )

    @router.get("/models", summary="List the served models", response_model=ModelsReply)
    async def list_models() -> Response:
        """Every served bundle: what it is, what it was trained on and how well it did."""
        return json_reply(models)

    @router.get("/healthz", summary="Is the process alive?", response_model=Status)
    async def healthz() -> Response:
        """Always 200 while the process can answer at all."""
        return json_reply({"status": "alive"})

    @router.get(
        "/readyz",
        summary="Can it recommend?",
        response_model=Status,
        responses=errors.documented(ErrorCode.NOT_READY),
    )
    async def readyz() -> Response:
        """200 when every model is loaded and its worker runs, else 503."""
        return json_reply({"status": "ready"}) if batchers else errors.reply(ErrorCode.NOT_READY)
