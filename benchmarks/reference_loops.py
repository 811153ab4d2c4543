"""Plain loops as these models are usually written: the other side of the speed comparisons.

They are our own code, with the same mathematics, batches and negatives as ours; what differs is how the work is done.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.epoch import EpochRunner
from training.models.vbpr import VBPR


class PlainVBPR(nn.Module):
    """VBPR that projects every item for every batch, with dense gradients and the default Adam.

    Args:
        model: Its configuration, features and initial values are taken over (as copies).
        learning_rate: Adam's.
    """

    def __init__(self, model: VBPR, learning_rate: float) -> None:
        super().__init__()
        self.regularisation = model.config.regularisation
        self.features = model.features
        self.users = nn.Parameter(model.users.detach().clone())
        self.items = nn.Parameter(model.items.detach().clone())
        width, inputs = model.weight.shape
        self.projection = nn.Linear(inputs, width, device=model.weight.device, dtype=model.weight.dtype)
        with torch.no_grad():
            self.projection.weight.copy_(model.weight)
            self.projection.bias.copy_(model.bias)
        self.optimiser = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def item_vectors(self) -> Tensor:
        """Project the features of all items and append them to the id embeddings, float32 [I, 2d]."""
        return torch.cat([self.items, self.projection(self.features)], dim=1)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return BPR and embedding norms of a batch of triples, int64 [B] each."""
        items = self.item_vectors()
        u, p, n = self.users[users], items[positives], items[negatives]
        bpr = -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean()
        norms = torch.linalg.norm(u) + torch.linalg.norm(p) + torch.linalg.norm(n)
        total: Tensor = bpr + self.regularisation * norms / len(users)
        return total

    def steps_of(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Iterator[Tensor]:
        """Make one optimisation step for each value taken."""
        for triple in batches:
            self.optimiser.zero_grad()
            loss = self.loss(*triple)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            yield loss.detach()


def reference_for(runner: EpochRunner) -> PlainVBPR | None:
    """Return the plain loop for a runner's model, or None where there is none."""
    model = runner.objective.model
    return PlainVBPR(model, runner.config.training.learning_rate) if isinstance(model, VBPR) else None
