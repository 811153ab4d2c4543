"""FREEDOM as a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference_loops.base import PlainLoop, coo, light_gcn, linear, table, tables
from training.models.freedom import FREEDOM


class PlainFREEDOM(PlainLoop):
    """FREEDOM that propagates along both graphs and projects every item for every batch.

    The item–item graph is ours: it is made once, before the first step.

    Args:
        model: Its configuration, graphs, features and initial values are taken over (as copies).
        learning_rate: Adam's.
    """

    def __init__(self, model: FREEDOM, learning_rate: float) -> None:
        super().__init__()
        self.config = model.config
        self.users = table(model.users)
        self.items = table(model.items)
        self.edges = model.graph.user_item_edges(len(model.users))
        self.adjacency = coo(model.graph)
        self.item_adjacency = coo(model.item_graph)
        self.features = tables({name: getattr(model, f"features_{name}") for name in model.modalities})
        self.features.requires_grad_(model.config.trained_features)
        self.projections = nn.ModuleDict(
            {name: linear(getattr(model, f"projection_{name}")) for name in model.modalities}
        )
        self.use_adam(learning_rate)

    def begin_epoch(self) -> None:
        """Mask the user–item graph: edges between nodes of high degree stay less often."""
        if self.config.dropped > 0:
            keep = int(self.edges.shape[1] * (1 - self.config.dropped))
            self.use_edges(self.edges[:, torch.multinomial(self._normalised(self.edges), keep)])

    def use_edges(self, edges: Tensor) -> None:
        """Propagate along these interactions, int64 [2, E'], from now on."""
        users, items = edges[0], edges[1] + self.users.num_embeddings
        indices = torch.cat([torch.stack([users, items]), torch.stack([items, users])], dim=1)
        count = self.users.num_embeddings + self.items.num_embeddings
        values = self._normalised(edges).to(self.users.weight.dtype).repeat(2)
        self.adjacency = torch.sparse_coo_tensor(indices, values, (count, count), check_invariants=False).coalesce()

    def _normalised(self, edges: Tensor) -> Tensor:
        of_users = torch.bincount(edges[0], minlength=self.users.num_embeddings) + 1e-7
        of_items = torch.bincount(edges[1], minlength=self.items.num_embeddings) + 1e-7
        return of_users.rsqrt()[edges[0]] * of_items.rsqrt()[edges[1]]

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the term of the scores and those of the modalities."""
        h = self.items.weight
        for _ in range(self.config.item_layers):
            h = torch.sparse.mm(self.item_adjacency, h)
        all_users, all_items = light_gcn(self.adjacency, self.users, self.items, self.config.layers)
        u = all_users[users]
        total = _bpr(u, all_items + h, positives, negatives)
        for name, projection in self.projections.items():
            projected = projection(self.features[name].weight)  # [I, d]
            total = total + self.config.modality_loss * _bpr(u, projected, positives, negatives)
        return total


def _bpr(users: Tensor, items: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return -F.logsigmoid((users * items[positives]).sum(1) - (users * items[negatives]).sum(1)).mean()
