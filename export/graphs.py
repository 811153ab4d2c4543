"""The three graphs of a bundle as modules, ready for an exporter."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.base import Recommender


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
    """Vectors of items that were not there in training: one float32 [B, F_m] per modality → ``vectors`` [B, D]."""

    def __init__(self, model: Recommender, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.modalities = modalities

    def forward(self, *features: Tensor) -> Tensor:
        """Embed items from their features, in the order of ``modalities``."""
        return self.model.encode_items(dict(zip(self.modalities, features, strict=True)))
