"""VBPR as a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference_loops.base import PlainLoop
from training.models.vbpr import VBPR


class PlainVBPR(PlainLoop):
    """VBPR that projects every item for every batch, with dense gradients and the default Adam.

    Args:
        model: Its configuration, features and initial values are taken over (as copies).
        learning_rate: Adam's.
    """

    def __init__(self, model: VBPR, learning_rate: float) -> None:
        super().__init__()
        self.config = model.config
        self.features = model.features
        self.users = nn.Parameter(model.users.detach().clone())
        self.items = nn.Parameter(model.items.detach().clone())
        width, inputs = model.weight.shape
        self.projection = nn.Linear(inputs, width, device=model.weight.device, dtype=model.weight.dtype)
        with torch.no_grad():
            self.projection.weight.copy_(model.weight)
            self.projection.bias.copy_(model.bias)
        self.use_adam(learning_rate)

    def item_vectors(self) -> Tensor:
        """Project the features of all items and append them to the id embeddings, float32 [I, 2d]."""
        return torch.cat([self.items, self.projection(self.features)], dim=1)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return BPR and embedding decay of a batch of triples, int64 [B] each."""
        items = self.item_vectors()
        u, p, n = self.users[users], items[positives], items[negatives]
        bpr = -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean()
        if self.config.decay == "squared":
            size = 0.5 * (u.square().sum() + p.square().sum() + n.square().sum())
        else:
            size = torch.linalg.norm(u) + torch.linalg.norm(p) + torch.linalg.norm(n)
        total: Tensor = bpr + self.config.regularisation * size / len(users)
        return total
