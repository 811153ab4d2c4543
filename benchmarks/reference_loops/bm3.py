"""BM3 as a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference_loops.base import PlainLoop, coo, light_gcn, linear, table, tables
from training.models.bm3 import BM3


class PlainBM3(PlainLoop):
    """BM3 that propagates, projects and predicts every user and every item for every batch.

    Args:
        model: Its configuration, graph, features and initial values are taken over (as copies).
        learning_rate: Adam's.
    """

    def __init__(self, model: BM3, learning_rate: float) -> None:
        super().__init__()
        self.config = model.config
        self.adjacency = coo(model.graph)
        self.users = table(model.users)
        self.items = table(model.items)
        self.predictor = linear(model.predictor)
        self.features = tables({name: getattr(model, f"features_{name}") for name in model.modalities})
        self.features.requires_grad_(model.config.trained_features)
        self.projections = nn.ModuleDict(
            {name: linear(getattr(model, f"projection_{name}")) for name in model.modalities}
        )
        self.use_adam(learning_rate)

    def dropout(self, name: str, x: Tensor) -> Tensor:
        """Drop values of a target; ``name`` says of which one."""
        del name
        return F.dropout(x, self.config.dropout)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return all terms of a batch of pairs, with the norms."""
        del negatives
        all_users, all_items = light_gcn(self.adjacency, self.users, self.items, self.config.layers)
        all_items = all_items + self.items.weight
        with torch.no_grad():
            user_targets = self.dropout("users", all_users)
            item_targets = self.dropout("items", all_items)
        user_online, item_online = self.predictor(all_users), self.predictor(all_items)
        total = _apart(user_online[users], item_targets[positives]) + _apart(
            item_online[positives], user_targets[users]
        )
        for name, projection in self.projections.items():
            projected = projection(self.features[name].weight)  # [I, d]
            with torch.no_grad():
                targets = self.dropout(name, projected)
            online = self.predictor(projected)[positives]
            terms = _apart(online, item_targets[positives]) + _apart(online, targets[positives])
            total = total + self.config.modality_weight * terms
        norms = torch.linalg.norm(all_users) + torch.linalg.norm(all_items)
        result: Tensor = total + self.config.regularisation * norms / self.items.num_embeddings
        return result


def _apart(online: Tensor, targets: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(online, targets.detach(), dim=-1).mean()
