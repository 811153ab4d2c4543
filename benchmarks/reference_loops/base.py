"""What the plain loops share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from training.graph import Graph


class PlainLoop(nn.Module, ABC):
    """A model with its loss and its optimiser.

    Attributes:
        optimiser: Adam over all parameters; subclasses make it with ``use_adam`` when these exist.
    """

    optimiser: torch.optim.Adam

    def use_adam(self, learning_rate: float) -> None:
        """Make the optimiser, with PyTorch's own defaults."""
        self.optimiser = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def begin_epoch(self) -> None:
        """Get ready for an epoch's steps."""
        return

    @abstractmethod
    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of a batch of triples, int64 [B] each ([0] negatives where there are none)."""

    def steps_of(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Iterator[Tensor]:
        """Make one optimisation step of an epoch for each value taken."""
        self.begin_epoch()
        for triple in batches:
            self.optimiser.zero_grad()
            loss = self.loss(*triple)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            yield loss.detach()


def table(values: Tensor) -> nn.Embedding:
    """Return a trainable table with a copy of these values, float32 [n, d]."""
    return nn.Embedding(values.shape[0], values.shape[1], _weight=values.detach().clone())


def tables(values: Mapping[str, Tensor]) -> nn.ModuleDict:
    """Return trainable tables by name."""
    return nn.ModuleDict({name: table(matrix) for name, matrix in values.items()})


def linear(layer: nn.Linear) -> nn.Linear:
    """Return a layer with a copy of another one's values."""
    copy = nn.Linear(layer.in_features, layer.out_features, device=layer.weight.device, dtype=layer.weight.dtype)
    copy.load_state_dict(layer.state_dict())
    return copy


def coo(graph: Graph) -> Tensor:
    """Return a graph as a COO matrix."""
    indices = torch.stack([graph.targets, graph.sources])
    return torch.sparse_coo_tensor(indices, graph.weights, graph.shape, check_invariants=False).coalesce()


def light_gcn(adjacency: Tensor, users: nn.Embedding, items: nn.Embedding, layers: int) -> tuple[Tensor, Tensor]:
    """Propagate and return the mean over the layers, users [U, d] and items [I, d]."""
    x = torch.cat([users.weight, items.weight])
    collected = [x]
    for _ in range(layers):
        x = torch.sparse.mm(adjacency, x)
        collected.append(x)
    mean = torch.stack(collected, dim=1).mean(dim=1)
    return mean[: users.num_embeddings], mean[users.num_embeddings :]
