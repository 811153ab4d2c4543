"""What the service replies, as OpenAPI shows it. Replies are built as plain dictionaries of exactly these shapes."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ModelName = Field(description="name given to --bundle", examples=["dvib"])
Version = Field(description="identifies the bundle's content", examples=["3f2a9c0b7d1e"])


class Item(BaseModel):
    """One recommended item."""

    item_id: str = Field(description="the data set's own id")
    title: str | None = Field(description="null where the data set has none")
    score: float = Field(description="inner product of user and item; for popular items, training interactions")


class RecommendReply(BaseModel):
    """Items by descending score, equal scores in the order of the item rows, without the user's training items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "196",
                    "model": "dvib",
                    "version": "3f2a9c0b7d1e",
                    "source": "model",
                    "items": [{"item_id": "302", "title": "L.A. Confidential (1997)", "score": 1.7342}],
                }
            ]
        }
    )

    user_id: str
    model: str = ModelName
    version: str = Version
    source: Literal["model", "popular", "history"] = Field(
        description="model: ranked for this user; popular: unknown user; history: ranked from items sent along"
    )
    items: list[Item]


class DatasetInfo(BaseModel):
    """What a model was trained on."""

    name: str
    n_users: int
    n_items: int
    n_train: int = Field(description="training interactions")


class ModelInfo(BaseModel):
    """One served bundle."""

    name: str = ModelName
    default: bool = Field(description="answers requests that name no model")
    model: str = Field(description="architecture", examples=["vbpr"])
    variant: Literal["none", "constant", "adaptive"] = Field(description="DVIB variant it was trained with")
    preset: str
    n_items: int = Field(description="items it can recommend: those it was trained with, and those added since")
    dataset: DatasetInfo
    dimension: int = Field(description="length of user and item vectors")
    version: str = Version
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")


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
    INVALID_K = "invalid_k"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_MODEL = "unknown_model"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    NOT_READY = "not_ready"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"


class ErrorBody(BaseModel):
    """A fixed code for programs and a fixed sentence for people."""

    code: ErrorCode
    message: str


class ErrorReply(BaseModel):
    """The shape of every error reply."""

    error: ErrorBody
