"""GRCN: convolution over a user–item graph whose edges are weighed by what users like in the modalities.

Wei, Wang, Nie, He and Chua, "Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback",
ACM Multimedia 2020, in the form of the MMRec toolbox. For every modality m, with ‖·‖ row by row and softmaxes over the
edges that end in the same node:

    f     = lrelu(P m + p) / ‖·‖                                                  [I, d]
    t_0   = T / ‖T‖                                                               [U, d]    T the preferences
    t_r   = t_{r-1} + Σ_{i of u} softmax_i(<t_{r-1,u}, f_i>) f_i, then / ‖·‖      r = 1 … R, routing from items to users
    α_e   = softmax_e(<x_target, x_source>) over both directions, x = [t_R ; f]   [2E]
    c_m   = x + Σ_e α_e x_source                                                  [N, d]    content, users first
    w_e   = relu(max_m α_{e,m} C_{source, m})                                     [2E]      pruning; C confidence [N, M]
    y     = e / ‖e‖ + A_w e / ‖e‖ + A_w² e / ‖e‖                                  [N, d]    e the id embedding
    Z     = [y ‖ c_1 ‖ … ‖ c_M]                                                   [N, d (1 + M)]
    score(u, i) = <Z_u, Z_i>

    L0 = BPR + λ (mean(e_u² + e_i²) + Σ_m mean(T_{m,u}²)), means over the 2B (user, item) rows of a batch

MMRec adds the mean of T² over all users for the images alone, which the paper and its authors' code do not have: left
out. Both let the messages of the routing run from users to items, where nobody reads them, so that t_R = t_0:
``routing="none"``.

Sites: ``content``, H = the rows of [c_1 ‖ … ‖ c_M], ``users`` [n_u, d M] and ``items`` [n_i, d M], f2 appends them to
y; ``edges``, H = α [2E, M], where the WWW 2025 authors' code adds its constant noise, f2 is what follows it above.

Defaults: d = 64, R = 3, two convolutions and Xavier normal for tables and P are MMRec's (p has PyTorch's default); λ is
the middle of MMRec's grid {.1, .01, 1e-3, 1e-4, 1e-5}.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.common.errors import ConfigError, DataError
from training.graph import Graph
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import batch_square_sum, bpr_loss, linear, margin, take, unit_rows


class GRCNConfig(ModelConfig):
    """Hyper-parameters of GRCN."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the id embedding and of each modality (MMRec)")
    routings: int = Field(3, ge=0, le=16, description="R, routing iterations (MMRec)")
    routing: Literal["item_to_user", "none"] = Field(
        "item_to_user", description="refine the preferences by the users' items, or not at all (authors' code, MMRec)"
    )
    layers: int = Field(2, ge=1, le=16, description="convolutions of the id embedding (MMRec)")
    regularisation: float = Field(
        1e-3, ge=0, allow_inf_nan=False, description="λ, weight of the mean squared id embeddings and preferences"
    )
    initial_confidence: Literal["xavier", "one"] = Field(
        "xavier", description="what C starts from: small numbers, half of which prune (MMRec), or ones"
    )
    inject_at: Literal["content", "edges"] = Field(
        "content", description="what H is: the modalities' representations, or the edges' attention"
    )


class _Content(nn.Module):
    """What belongs to one modality."""

    features: Tensor

    def __init__(self, config: GRCNConfig, features: Tensor, n_users: int, generator: torch.Generator) -> None:
        super().__init__()
        width = features.shape[1]
        self.register_buffer("features", features, persistent=False)
        self.projection = linear(width, config.dimension, generator, xavier=True)  # P, p
        self.preferences = nn.Parameter(torch.empty(n_users, config.dimension))
        nn.init.xavier_normal_(self.preferences, generator=generator)

    def projected(self) -> Tensor:
        """Return f [I, d]. In evaluation the products are added up in float64.

        They cancel, and what follows keeps directions only: in float32 two orders of adding the same products differed
        by more (3e-6 of a user's largest score, after one epoch) than exports are allowed to.
        """
        if self.training:
            rows = self.projection(self.features)
        else:
            weight, bias = self.projection.weight.double(), self.projection.bias.double()
            rows = F.linear(self.features.double(), weight, bias).float()
        return unit_rows(F.leaky_relu(rows, inplace=True))


class GRCN(Recommender):
    """GRCN. See the module's text for formulas and sources."""

    Config = GRCNConfig
    no_item_encoder = "GRCN gives each item an id embedding besides its content: a new item's would be random"

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, GRCNConfig):
            raise ConfigError(f"GRCN wants a GRCNConfig, got {type(config).__name__}")
        if not data.features:
            raise DataError("GRCN needs features of at least one modality, the data set has none; add NAME_feat.npy")
        self.config = config
        self.n_users = data.n_users
        nodes = data.n_users + data.n_items
        self.graph = Graph.bipartite(data.edges, data.n_users, data.n_items)
        self.to_users = Graph(data.edges[0], data.edges[1], data.n_users, data.n_items)
        # The second half of the graph's edges are the first in the order of (item, user).
        self.register_buffer("turned", torch.argsort(self.to_users.sources, stable=True), persistent=False)
        self.turned: Tensor
        self.ids = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, config.dimension), generator=generator))
        self.confidence = nn.Parameter(torch.empty(nodes, len(data.features)))
        nn.init.xavier_normal_(self.confidence, generator=generator)
        if config.initial_confidence == "one":
            nn.init.ones_(self.confidence)
        self.contents: dict[str, _Content] = {}
        for name, features in data.features.items():
            self.contents[name] = _Content(config, features, data.n_users, generator)
            self.add_module(f"of_{name}", self.contents[name])
        width = config.dimension * len(self.contents)
        by_site = {"content": {"users": width, "items": width}, "edges": {"edges": len(self.contents)}}
        self.site_widths = by_site[config.inject_at]

    def hidden(self, rows: Rows) -> Hidden:
        """Return the content rows ``users`` and ``items`` as sites, or for ``edges`` the attention of every edge."""
        context, attention, content = {}, [], []
        for name, network in self.contents.items():
            items = network.projected()
            users = self.routed(unit_rows(network.preferences), items)
            agreement = self.to_users.dot(users, items)  # [E], the same in both directions
            alpha = self.graph.softmax(torch.cat([agreement, agreement[self.turned]]))  # [2E]
            x = torch.cat([users, items])
            attention.append(alpha)
            content.append(self._rows(x + self.graph(x, alpha), rows))
            if self.training:
                context[f"{name}/preferences"] = take(network.preferences, rows.users)
        if self.training:
            context["id_users"], context["id_items"] = self._rows(self.ids, rows)
        users, items = (torch.cat(parts, dim=1) for parts in zip(*content, strict=True))
        edges = torch.stack(attention, dim=1)  # [2E, M]
        if self.config.inject_at == "edges":
            return Hidden({"edges": edges}, {**context, "users": users, "items": items}, rows)
        context["convolved_users"], context["convolved_items"] = self._rows(self.convolved(edges), rows)
        return Hidden({"users": users, "items": items}, context, rows)

    def routed(self, users: Tensor, items: Tensor) -> Tensor:
        """Return t_R [U, d] from t_0 [U, d] and f [I, d]."""
        if self.config.routing == "item_to_user":
            for _ in range(self.config.routings):
                alpha = self.to_users.softmax(self.to_users.dot(users, items))  # [E]
                users = unit_rows(users + self.to_users(items, alpha))
        return users

    def convolved(self, edges: Tensor) -> Tensor:
        """Return y [N, d] from the attention of every edge [2E, M]."""
        # Not ``take``: its backward pass is twenty times slower on rows as narrow as these.
        confidence = self.confidence.index_select(0, self.graph.sources)  # [2E, M]
        weights = F.relu((edges * confidence).amax(dim=1))  # [2E]
        x = total = unit_rows(self.ids)
        for _ in range(self.config.layers):
            x = self.graph(x, weights)
            total = total + x
        return total

    def represent(self, hidden: Hidden) -> Latent:
        """Append the content to the convolved id embeddings, which for ``edges`` are computed here."""
        if self.config.inject_at == "edges":
            ids = self._rows(self.convolved(hidden.sites["edges"]), hidden.rows)
            content = hidden.context["users"], hidden.context["items"]
        else:
            ids = hidden.context["convolved_users"], hidden.context["convolved_items"]
            content = hidden.sites["users"], hidden.sites["items"]
        users, items = (torch.cat(parts, dim=1) for parts in zip(ids, content, strict=True))
        return Latent(users, items, extra=hidden.context)

    def _rows(self, nodes: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Take the given users and items from a table of all nodes."""
        users = nodes[: self.n_users] if rows.users is None else take(nodes, rows.users)
        return users, nodes[self.n_users :] if rows.items is None else take(nodes, rows.items + self.n_users)

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the BPR term."""
        return {"bpr": bpr_loss(margin(latent.users, latent.items, batch.users, batch.positives, batch.negatives))}

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times the mean squares of the batch's id embeddings and of its users' preferences."""
        items = torch.cat([batch.positives, batch.negatives])
        # Each triple gives two (user, item) rows, one with the positive and one with the negative item.
        squares = batch_square_sum(latent.extra["id_items"], items)
        for table in ("id_users", *(f"{name}/preferences" for name in self.contents)):
            squares = squares + 2 * batch_square_sum(latent.extra[table], batch.users)
        return self.config.regularisation * squares / (2 * len(batch.users) * self.config.dimension)

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return users [n_u, d (1 + M)] and items [n_i, d (1 + M)]: the representations themselves."""
        return latent.users, latent.items
