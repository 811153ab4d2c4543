"""The models as the contract tests train them: a new model gets one line in ``CASES``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """How a model is trained here, and what it promises differently.

    Attributes:
        overrides: Settings under which it learns the planted blocks in ``EPOCHS`` epochs.
        needs_modality: Whether it refuses data without features.
        idle: Parameters that the model's own loss cannot move: a bias cancels in a difference of scores.
    """

    overrides: tuple[str, ...] = ("training.learning_rate=0.03",)
    needs_modality: bool = True
    idle: tuple[str, ...] = ()


CASES = {
    "vbpr": Case(),
    "mmgcn": Case(),
    "grcn": Case(),
    "bm3": Case(),
    "freedom": Case(idle=("model.projection_image.bias", "model.projection_text.bias")),
    "selfcf": Case(needs_modality=False),
    "layergcn": Case(needs_modality=False),
}
