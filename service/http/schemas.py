"""What the service replies, as OpenAPI shows it. Replies are built as plain dictionaries of exactly these shapes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ModelName = Field(description="name given to --bundle", examples=["dvib"])
Version = Field(description="identifies the bundle's content", examples=["3f2a9c0b7d1e"])
_ITEM = {"item_id": "302", "title": "L.A. Confidential (1997)"}
_HEAD = {"model": "dvib", "version": "3f2a9c0b7d1e"}
_RECOMMENDATION = {"user_id": "196", **_HEAD, "source": "model", "items": [{**_ITEM, "score": 1.7342}]}


def _example(document: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [document]})


class KnownItem(BaseModel):
    """An item of the bundle."""

    item_id: str = Field(description="the data set's own id")
    title: str | None = Field(description="null where the data set has none")


class Item(KnownItem):
    """One recommended item."""

    score: float = Field(description="inner product of user and item; for popular items, training interactions")


class SimilarItem(KnownItem):
    """One similar item."""

    score: float = Field(description="cosine of the two items' vectors")


class RecommendReply(BaseModel):
    """Items by descending score, equal scores in the order of the item rows."""

    model_config = _example(_RECOMMENDATION)

    user_id: str
    model: str = ModelName
    version: str = Version
    source: Literal["model", "popular", "history"] = Field(
        description="model: ranked for this user; popular: unknown user; history: ranked from items sent along"
    )
    items: list[Item]


class BatchReply(BaseModel):
    """One reply per request, in order."""

    model_config = _example({"replies": [_RECOMMENDATION]})

    replies: list[RecommendReply]


class SimilarReply(BaseModel):
    """Items by descending score, equal scores in the order of the item rows, without the item itself."""

    model_config = _example({"item_id": "303", **_HEAD, "items": [{**_ITEM, "score": 0.8125}]})

    item_id: str
    model: str = ModelName
    version: str = Version
    items: list[SimilarItem]


class DescribedItem(KnownItem):
    """One item and where it belongs."""

    categories: list[str] = Field(description="sorted; empty where the item has none")


class ItemsReply(BaseModel):
    """Those of the items asked for that the model knows, in the order of the item rows."""

    model_config = _example({**_HEAD, "items": [{**_ITEM, "categories": ["Crime", "Mystery"]}]})

    model: str = ModelName
    version: str = Version
    items: list[DescribedItem]


class HistoryReply(BaseModel):
    """The items that a user has interacted with in training."""

    model_config = _example({"user_id": "196", **_HEAD, "n_items": 1, "items": [_ITEM]})

    user_id: str
    model: str = ModelName
    version: str = Version
    n_items: int = Field(description="all of them, of which at most limit are listed")
    items: list[KnownItem]


class DatasetInfo(BaseModel):
    """What a model was trained on."""

    name: str
    n_users: int
    n_items: int
    n_train: int = Field(description="training interactions")


class ModelInfo(BaseModel):
    """One served bundle."""

    name: str = ModelName
    default: bool = Field(description="the first that the service was given")
    share: float = Field(description="share of the users that it answers where a request names no model", ge=0, le=1)
    model: str = Field(description="architecture", examples=["vbpr"])
    variant: Literal["none", "constant", "adaptive"] = Field(description="DVIB variant it was trained with")
    preset: str
    n_items: int = Field(description="items it can recommend: those it was trained with, and those added since")
    dataset: DatasetInfo
    dimension: int = Field(description="length of user and item vectors")
    version: str = Version
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")
    categories: list[str] = Field(description="what `category` may be; empty where the bundle has none")
    example_users: list[str] = Field(description="a few users with training items, to try the service with")
    providers: dict[str, list[str]] = Field(
        description="ONNX Runtime session to the execution providers that it really got, first the one asked first",
        examples=[{"user_tower": ["CPUExecutionProvider"], "scan": ["CPUExecutionProvider"]}],
    )


class ModelsReply(BaseModel):
    """All served bundles, the default one first."""

    models: list[ModelInfo]


class Status(BaseModel):
    """Alive or ready."""

    status: Literal["alive", "ready"]


class ErrorCode(StrEnum):
    """Every error the service can reply."""

    MISSING_USER_ID = "missing_user_id"
    INVALID_ID = "invalid_id"
    ID_TOO_LONG = "id_too_long"
    TOO_MANY_IDS = "too_many_ids"
    INVALID_K = "invalid_k"
    INVALID_LIMIT = "invalid_limit"
    INVALID_FLAG = "invalid_flag"
    INVALID_SCORE = "invalid_score"
    REPEATED_PARAMETER = "repeated_parameter"
    INVALID_BODY = "invalid_body"
    TOO_MANY_REQUESTS_IN_BATCH = "too_many_requests_in_batch"
    UNKNOWN_CATEGORY = "unknown_category"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_USER = "unknown_user"
    UNKNOWN_ITEM = "unknown_item"
    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LONG = "body_too_long"
    URI_TOO_LONG = "uri_too_long"
    HEADERS_TOO_LONG = "headers_too_long"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    INTERNAL = "internal"
    NOT_READY = "not_ready"
    OVERLOADED = "overloaded"
    TIMED_OUT = "timed_out"


class ErrorBody(BaseModel):
    """A fixed code for programs and a fixed sentence for people."""

    code: ErrorCode
    message: str


class ErrorReply(BaseModel):
    """The shape of every error reply."""

    error: ErrorBody
