"""What a user can choose about a data set. The choices go into every checkpoint."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.common.choices import FeatureScaling
from training.common.errors import ConfigError
from training.data.transform_specs import parse_transform


class DataOptions(BaseModel):
    """How interactions are filtered and split, how large derived features are, and how models see features.

    Raises:
        pydantic.ValidationError: An unknown key, or a value of the wrong type or outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_rating: float | None = Field(
        default=None, allow_inf_nan=False, description="keep interactions with at least this rating; none keeps all"
    )
    k_core: int = Field(
        default=0, ge=0, description="drop users and items with fewer interactions, repeatedly; 0 is off"
    )
    split: Literal["random", "chronological"] = Field(
        default="random", description="how each user's interactions are divided 8:1:1 into train, valid and test"
    )
    split_seed: int = Field(default=0, ge=0, description="seed of the random split")
    text_dimensions: int = Field(
        default=64, ge=1, le=4096, description="width of the text features derived from an items table"
    )
    feature_scaling: FeatureScaling = Field(
        default="none",
        description="what models see of each modality: the features as they are; centred and divided by one standard "
        "deviation (global), or each column by its own (per_dimension)",
    )
    transforms: tuple[str, ...] = Field(
        default=(),
        description="noise and redundancy put into the data, in this order: noise:CHI, relative-noise:CHI, "
        "visual-redundancy, text-redundancy (--transform)",
    )
    transform_seed: int = Field(default=0, ge=0, description="seed of what transforms draw")

    @model_validator(mode="after")
    def _transforms_are_known(self) -> Self:
        for text in self.transforms:
            try:
                parse_transform(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def refuse(self, names: tuple[str, ...], where: str, reason: str) -> None:
        """Refuse options that would be ignored without a word.

        Args:
            names: The options that do not apply.
            where: The data set, for the message.
            reason: Why they do not apply.

        Raises:
            ConfigError: One of them differs from its default.
        """
        for name in names:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ConfigError(
                    f"{name}={value} does not apply to {where}: {reason}; leave {name} at its default ({default})"
                )
