"""The settings of the robust trainings that DVIB is compared with, and put together with (paper, Table 4)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RobustConfig(BaseModel):
    """Which of them take part: by default none. Their own defaults are those of their authors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    amr: bool = Field(
        default=False,
        description="adversarial training: the task's loss is counted once more on features that were moved to where "
        "it is worse. For models that read each item's own features",
    )
    amr_weight: Weight = Field(default=1.0, description="λ, weight of the loss on the moved features")
    amr_epsilon: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=False,
        description="ε, how far each item's features are moved: a length in the units in which the model sees them, "
        "after data.feature_scaling",
    )
    amr_modalities: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="which are moved, as one vector; null: image where there is one, else all",
    )
    mg: bool = Field(
        default=False,
        description="Mirror Gradient: some steps down the loss are followed by a smaller one up it, on the same batch",
    )
    mg_interval: int = Field(default=3, ge=1, description="β: the first batch of an epoch and every β-th from there")
    mg_descent: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="α1, multiplies the loss in the step down"
    )
    mg_ascent: Weight = Field(default=0.1, description="α2, multiplies the loss in the step up")
