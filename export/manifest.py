"""What a bundle says of itself in ``manifest.json``. Needs neither torch nor a file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

# A stranger wrote the manifest: text goes to terminals, and sums of sizes must stay numbers that can be printed.
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=500)]
Rows = Annotated[int, Field(ge=1, lt=2**31)]


class FileEntry(BaseModel):
    """SHA-256 and size of one file."""

    model_config = _STRICT

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, lt=2**63)


class DatasetEntry(BaseModel):
    """What the bundle was trained on."""

    model_config = _STRICT

    name: Text
    fingerprint: Text = Field(description="SHA-256 over ids, splits and features")
    n_users: Rows
    n_items: Rows
    n_train: int = Field(ge=1, lt=2**63, description="training interactions")
    modalities: dict[str, int] = Field(description="modality name to feature width")


class Recall(BaseModel):
    """How many of the exact best items an index finds."""

    model_config = _STRICT

    k: Rows
    value: float = Field(
        ge=0, le=1, description="share found, after exact re-scoring, of the users' k best items without seen ones"
    )
    users: Rows = Field(description="real user vectors it was measured with, evenly spaced over all users")


class IndexEntry(BaseModel):
    """The FAISS index."""

    model_config = _STRICT

    kind: Literal["flat", "hnsw", "ivf", "ivfpq", "custom"] = "flat"
    factory: Text = Field(description="FAISS factory string of exactly what the file holds")
    metric: Literal["inner_product"] = "inner_product"
    exact: bool
    search: dict[Literal["nprobe", "efSearch", "overfetch"], Rows] = Field(
        default_factory=dict, description="lists probed, breadth of the search, candidates per item that is asked for"
    )
    recall: Recall | None = Field(default=None, description="measured at export; null for an exact index")

    @model_validator(mode="after")
    def _exact_or_measured(self) -> Self:
        if self.exact != (self.kind == "flat") or self.exact != (self.recall is None):
            raise ValueError("a flat index is exact, every other has a recall")
        return self


class AddedItems(BaseModel):
    """Items that joined a bundle without training, through the item tower; their rows follow the trained ones."""

    model_config = _STRICT

    count: Rows
    base_version: str = Field(pattern="^[0-9a-f]{12}$", description="version of the bundle that they were added to")


class Manifest(BaseModel):
    """The self-description of a bundle, stored as ``manifest.json``."""

    model_config = _STRICT

    schema_name: Literal["dvib.bundle"] = "dvib.bundle"
    schema_version: int = Field(default=SCHEMA_VERSION, ge=0, lt=2**31)
    version: str = Field(pattern="^[0-9a-f]{12}$", description="identifies the content: a hash over all the rest")
    model: Text
    variant: Literal["none", "constant", "adaptive"]
    preset: Text
    dataset: DatasetEntry
    dimension: Rows = Field(description="length of user and item vectors")
    index: IndexEntry
    opset: int = Field(ge=1, description="ONNX operator set of the graphs")
    absent: dict[str, Text] = Field(default_factory=dict, description="file that is not there to the reason")
    added: AddedItems | None = Field(default=None, description="items added after training")
    metrics: dict[str, dict[str, float]] = Field(description="split to metric to value")
    provenance: dict[str, str | int | float | bool | None]
    files: dict[str, FileEntry]

    @property
    def n_items(self) -> int:
        """Items that can be recommended: those of the training data, and those added since."""
        return self.dataset.n_items + (self.added.count if self.added else 0)
