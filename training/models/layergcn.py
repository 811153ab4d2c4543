"""LayerGCN: layer-refined graph convolution for recommendation. Needs no modality.

Zhou, Lin, Liu and Miao, "Layer-refined Graph Convolutional Networks for Recommendation", ICDE 2023, in the form of the
MMRec toolbox.

    x_0 = [P ; Q]                          [N, d]    ego embeddings, users first
    h_l = Â' x_{l-1}
    x_l = cos(h_l, x_0) · h_l                        refinement, row by row; x_l feeds layer l + 1
    Z   = x_1 + … + x_L                    [N, d]    the ego layer is left out
    score(u, i) = <Z_u, Z_i>

    L0 = Σ_batch -log σ(margin) + λ · ½ (‖x_0,u‖² + ‖x_0,pos‖² + ‖x_0,neg‖²)     a sum over the batch, not a mean

Training prunes edges: each epoch keeps ⌊E(1 - p)⌋ of them and normalises what is left, in odd epochs by degree
(``edges_by_degree``), in even ones uniformly. Inference uses the full graph, Â.

Sites: ``output``, H = Z with f2 the identity; ``ego``, H = x_0 with f2 the propagation. Neither the paper of DVIB nor
its authors' code says where H is.

Defaults: d = 64, L = 4 and Xavier uniform are MMRec's; λ and p are the middle of MMRec's grids {.01, 1e-3, 1e-4, 1e-5}
and {0, .1, .2}.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.common.errors import ConfigError
from training.graph import Graph, edges_at_random, edges_by_degree
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import batch_square_sum, margin, take


class LayerGCNConfig(ModelConfig):
    """Hyper-parameters of LayerGCN."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the embeddings (MMRec)")
    layers: int = Field(4, ge=1, le=16, description="L, propagation steps (MMRec)")
    regularisation: float = Field(
        1e-3, ge=0, allow_inf_nan=False, description="λ, weight of the squared ego embeddings, summed over the batch"
    )
    pruned: float = Field(0.1, ge=0, lt=1, description="p, share of the edges that each epoch leaves out")
    inject_at: Literal["output", "ego"] = Field(
        "output", description="what H is: the propagated embeddings, or those that go into the propagation"
    )


class LayerGCN(Recommender):
    """LayerGCN. See the module's text for formulas and sources."""

    Config = LayerGCNConfig

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, LayerGCNConfig):
            raise ConfigError(f"LayerGCN wants a LayerGCNConfig, got {type(config).__name__}")
        self.config = config
        self.site_widths = {"users": config.dimension, "items": config.dimension}
        self.graph = Graph.normalised(data.edges, data.n_users, data.n_items)
        self.register_module("pruned_graph", None)
        self.pruned_graph: Graph | None
        self.users = nn.Parameter(torch.empty(data.n_users, config.dimension))
        self.items = nn.Parameter(torch.empty(data.n_items, config.dimension))
        nn.init.xavier_uniform_(self.users, generator=generator)
        nn.init.xavier_uniform_(self.items, generator=generator)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Prune the graph anew."""
        super().begin_epoch(epoch, generator)
        if self.config.pruned > 0:
            sizes = len(self.users), len(self.items)
            edges = self.graph.user_item_edges(sizes[0])
            keep = int(edges.shape[1] * (1 - self.config.pruned))
            if epoch % 2:
                edges = edges_by_degree(edges, *sizes, keep, generator)
            else:
                edges = edges_at_random(edges, keep, generator)
            self.pruned_graph = Graph.normalised(edges, *sizes).train(self.training)

    def hidden(self, rows: Rows) -> Hidden:
        """Return the sites ``users`` and ``items``: propagated rows, or for ``ego`` the whole tables."""
        egos = {"ego_users": take(self.users, rows.users), "ego_items": take(self.items, rows.items)}
        if self.config.inject_at == "ego":
            return Hidden({"users": self.users, "items": self.items}, egos, rows)
        users, items = self._propagate(self.users, self.items)
        return Hidden({"users": take(users, rows.users), "items": take(items, rows.items)}, egos, rows)

    def represent(self, hidden: Hidden) -> Latent:
        """Return the sites as they are, or for ``ego`` propagate them and select the rows."""
        users, items = hidden.sites["users"], hidden.sites["items"]
        if self.config.inject_at == "ego":
            users, items = self._propagate(users, items)
            users, items = take(users, hidden.rows.users), take(items, hidden.rows.items)
        return Latent(users, items, extra=hidden.context)

    def _propagate(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        graph = self.pruned_graph if self.training and self.pruned_graph is not None else self.graph
        ego = torch.cat([users, items])  # [N, d]
        x, layers = ego, []
        for _ in range(self.config.layers):
            x = graph(x)
            x = F.cosine_similarity(x, ego).unsqueeze(1) * x
            layers.append(x)
        total = torch.stack(layers).sum(0)
        return total[: len(users)], total[len(users) :]

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the BPR term, summed over the batch."""
        margins = margin(latent.users, latent.items, batch.users, batch.positives, batch.negatives)
        return {"bpr": F.softplus(-margins).sum()}

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times half the squared ego embeddings of users, positives and negatives, summed over the batch."""
        users, items = latent.extra["ego_users"], latent.extra["ego_items"]
        squares = batch_square_sum(users, batch.users) + batch_square_sum(
            items, torch.cat([batch.positives, batch.negatives])
        )
        return 0.5 * self.config.regularisation * squares

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return users [n_u, d] and items [n_i, d]: the representations themselves."""
        return latent.users, latent.items
