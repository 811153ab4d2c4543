"""The HTTP routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.batching import QueueFullError
from service.errors import JSON
from service.schemas import ErrorCode, ModelsReply, RecommendReply, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.manifest import Manifest
    from service.batching import Batcher
    from service.engine import Recommendation
    from service.errors import Errors
    from service.settings import Settings


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


def _document(user_id: str, model: str, version: str, answer: Recommendation) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "model": model,
        "version": version,
        "source": answer.source,
        "items": [{"item_id": item.item_id, "title": item.title, "score": item.score} for item in answer.items],
    }


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type=JSON)


def _is_utf8(request: Request, parameter: str) -> bool:
    """Tell whether a query parameter's percent-encoding is that of UTF-8."""
    query = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
    return not any("\udc80" <= sign <= "\udcff" for name, value in query if name == parameter for sign in value)


def make_router(
    manifests: Mapping[str, Manifest], batchers: Mapping[str, Batcher], errors: Errors, settings: Settings
) -> APIRouter:
    """Return the routes over a set of models.

    Args:
        manifests: Model name to manifest; the first is the default model.
        batchers: Model name to running batcher; empty as long as the service is not ready.
        errors: Error replies.
        settings: Limits of a request.
    """
    router = APIRouter()
    default = next(iter(manifests), None)
    models = describe(manifests)

    def refuse_id(user_id: str, request: Request) -> ErrorCode | None:
        if not user_id or "\0" in user_id:
            return ErrorCode.INVALID_ID
        # Bytes that are no UTF-8 have become replacement characters, and so would another id of such bytes.
        if "\ufffd" in user_id and not _is_utf8(request, "user_id"):
            return ErrorCode.INVALID_ID
        return ErrorCode.ID_TOO_LONG if len(user_id.encode()) > settings.max_id_bytes else None

    @router.post(
        "/recommend",
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
    async def recommend(
        request: Request,
        user_id: str = Query(
            description=f"the data set's own id, at most {settings.max_id_bytes} UTF-8 bytes; "
            "an unknown user gets popular items",
            openapi_examples={"a user of ml-100k": {"value": "196"}},
        ),
        k: int = Query(settings.default_k, ge=1, le=settings.max_k, description="number of items"),
        model: str | None = Query(None, description="a name from /models; the default model where left out"),
    ) -> Response:
        """The best `k` items that the user has not interacted with in training."""
        refusal = refuse_id(user_id, request)
        if refusal is not None:
            return errors.reply(refusal)
        name = default if model is None else model
        if name is not None and name not in manifests:
            return errors.reply(ErrorCode.UNKNOWN_MODEL)
        if name is None or name not in batchers:
            return errors.reply(ErrorCode.NOT_READY)
        try:
            answer = await batchers[name].recommend(user_id, k)
        except QueueFullError:
            return errors.reply(ErrorCode.OVERLOADED, {"Retry-After": "1"})
        return _json(_document(user_id, name, manifests[name].version, answer))

    @router.get("/models", summary="List the served models", response_model=ModelsReply)
    async def list_models() -> Response:
        """Every served bundle: what it is, what it was trained on and how well it did."""
        return _json(models)

    @router.get("/healthz", summary="Is the process alive?", response_model=Status)
    async def healthz() -> Response:
        """Always 200 while the process can answer at all."""
        return _json({"status": "alive"})

    @router.get(
        "/readyz",
        summary="Can it recommend?",
        response_model=Status,
        responses=errors.documented(ErrorCode.NOT_READY),
    )
    async def readyz() -> Response:
        """200 when every model is loaded and its worker runs, else 503."""
        return _json({"status": "ready"}) if batchers else errors.reply(ErrorCode.NOT_READY)

    return router
