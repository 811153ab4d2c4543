"""The three graphs of a bundle as modules, ready for an exporter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import Recommender
from training.scaling import Scaling

EXAMPLE_USERS = (torch.arange(2),)
"""Two user rows, by which graphs over users are traced."""


class FullGraph(nn.Module):
    """The model's whole inference, nothing frozen: ``users`` int64 [B] → ``scores`` float32 [B, I]."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, users: Tensor) -> Tensor:
        """Score every item for the given users."""
        user_vectors, item_vectors = self.model.vectors()
        return F.embedding(users, user_vectors) @ item_vectors.T


class UserTower(nn.Module):
    """User vectors by row, computed once: ``users`` int64 [B] → ``vectors`` float32 [B, D]."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("user_vectors", vectors)
        self.user_vectors: Tensor

    def forward(self, users: Tensor) -> Tensor:
        """Look the vectors up."""
        return F.embedding(users, self.user_vectors)


class ItemTower(nn.Module):
    """Vectors of items that were not there in training: one float32 [B, F_m] per modality → ``vectors`` [B, D].

    Args:
        encoder: From the model's ``item_encoder``.
        modalities: Order of the inputs.
        scalings: What was done to the features before the model saw them; the tower does it to what it is given, so
            that it takes raw features.
    """

    def __init__(
        self, encoder: nn.Module, modalities: tuple[str, ...], scalings: Mapping[str, Scaling] | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.modalities = modalities
        self._scaled = frozenset(scalings or {})
        for name, scaling in (scalings or {}).items():
            self.register_buffer(f"offset_{name}", torch.from_numpy(scaling.offset))
            self.register_buffer(f"factor_{name}", torch.from_numpy(scaling.factor))

    def forward(self, *features: Tensor) -> Tensor:
        """Embed items from their raw features, in the order of ``modalities``."""
        scaled = {name: self._scale(name, matrix) for name, matrix in zip(self.modalities, features, strict=True)}
        vectors: Tensor = self.encoder(scaled)
        return vectors

    def _scale(self, name: str, matrix: Tensor) -> Tensor:
        if name not in self._scaled:
            return matrix
        offset, factor = self.get_buffer(f"offset_{name}"), self.get_buffer(f"factor_{name}")
        return (matrix - offset) * factor
