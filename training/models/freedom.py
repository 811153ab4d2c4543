"""FREEDOM: a frozen item–item graph from features beside a pruned user–item graph.

Zhou and Shen, "A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal Recommendation", ACM MM
2023, in the form of the MMRec toolbox.

    S   = Σ_m w_m · kNN_m / k              [I, I]    from the features as they come, constant; its rows sum to one
    h   = S^L' Q                           [I, d]    along the item–item graph
    [ū ; ī] = LightGCN(Â', [P ; Q], L)     [N, d]    mean over layers 0 … L
    y_i = ī_i + h_i,   score(u, i) = <ū_u, y_i>
    f_m = W_m x_m + b_m                    [I, d]    x_m: the modality's feature table, itself trained

    L0 = BPR(ū, y) + λ Σ_m BPR(ū, f_m)               means over the batch; no weight decay

kNN_m has a one for each of an item's k nearest by cosine, the item itself included (``training.knn``). MMRec divides by
the degrees of both ends; as every row has k entries, that is 1 / k. The weights w sum to one: a modality without a
configured weight gets an equal share, 1 / n of n modalities, and the others divide the rest in proportion to theirs.

Training masks the user–item graph: each epoch draws ⌊E(1 - p)⌋ edges, fewer between nodes of high degree
(``edges_by_degree``), and normalises what is left. Inference uses the full graph, Â, and neither x_m nor f_m.

A new item gets a row s of S, its k nearest among the training's items, and y = s (Ī + S^(L'-1) Q): h as S makes it, and
instead of an ī of its own, which it lacks, theirs. With ī = 0 the best of a user's new items came 250 to 530 places
further down (MovieLens 100K and TikTok, a fifth of the items kept from training).

Sites: ``graph``, H = h after each of the L' steps along S, f2 the rest of the way and adding ī; ``projected``, H = f_m
of every modality and f2 the identity.

Defaults: d = 64, L = 2, L' = 1, k = 10, w and p are MMRec's; λ is the middle of MMRec's grid {1e-5, 1e-4, 1e-3}, 0 left
out. Tables are Xavier uniform, projections PyTorch's own initial values for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from training.common.errors import ConfigError, DataError
from training.graph import Graph, edges_by_degree, light_gcn, users_and_items
from training.knn import NearestMean, knn_graph
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import bpr_loss, linear, margin, take


class FreedomConfig(ModelConfig):
    """Hyper-parameters of FREEDOM."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the embeddings (MMRec)")
    layers: int = Field(2, ge=1, le=16, description="L, propagation steps along the user–item graph (MMRec)")
    item_layers: int = Field(1, ge=1, le=16, description="L', propagation steps along the item–item graph (MMRec)")
    neighbours: int = Field(10, ge=1, le=65_536, description="k, nearest items of an item, itself included (MMRec)")
    modality_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=lambda: {"image": 0.1, "text": 0.9},
        description="w, share of each modality in the item–item graph (MMRec)",
    )
    dropped: float = Field(0.8, ge=0, lt=1, description="p, share of the user–item edges that each epoch leaves out")
    modality_loss: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="λ, weight of the terms that score by one modality's features"
    )
    trained_features: bool = Field(True, description="train the feature tables too (MMRec)")
    inject_at: Literal["graph", "projected"] = Field(
        "graph", description="what H is: items propagated along the item–item graph, or the projected features"
    )


class FREEDOM(Recommender):
    """FREEDOM. See the module's text for formulas and sources."""

    Config = FreedomConfig

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, FreedomConfig):
            raise ConfigError(f"FREEDOM wants a FreedomConfig, got {type(config).__name__}")
        if not data.features:
            raise DataError("FREEDOM needs features of at least one modality, the data set has none; add NAME_feat.npy")
        projected = config.inject_at == "projected"
        if projected and config.modality_loss == 0:
            raise ConfigError(
                "model.inject_at=projected needs model.modality_loss above 0, got 0: nothing would read the projected "
                "features; raise it, or set model.inject_at=graph"
            )
        self.config = config
        self.modalities = tuple(data.features) if config.modality_loss > 0 else ()
        steps = range(1, config.item_layers + 1)
        self.steps = ("items",) if config.item_layers == 1 else tuple(f"layer_{step}" for step in steps)
        self.site_widths = dict.fromkeys(self.modalities if projected else self.steps, config.dimension)
        self.graph = Graph.normalised(data.edges, data.n_users, data.n_items)
        self.item_graph = item_graph(data.features, config.modality_weights, config.neighbours)
        self.register_module("masked_graph", None)
        self.masked_graph: Graph | None
        self.users = nn.Parameter(torch.empty(data.n_users, config.dimension))
        self.items = nn.Parameter(torch.empty(data.n_items, config.dimension))
        nn.init.xavier_uniform_(self.users, generator=generator)
        nn.init.xavier_uniform_(self.items, generator=generator)
        for name in self.modalities:
            matrix = data.features[name]
            self.add_module(f"projection_{name}", linear(matrix.shape[1], config.dimension, generator, xavier=False))
            if config.trained_features:
                self.register_parameter(f"features_{name}", nn.Parameter(matrix.clone()))
            else:
                self.register_buffer(f"features_{name}", matrix, persistent=False)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Mask the user–item graph anew."""
        super().begin_epoch(epoch, generator)
        if self.config.dropped > 0:
            sizes = len(self.users), len(self.items)
            edges = self.graph.user_item_edges(sizes[0])
            edges = edges_by_degree(edges, *sizes, int(edges.shape[1] * (1 - self.config.dropped)), generator)
            self.masked_graph = Graph.normalised(edges, *sizes).train(self.training)

    def hidden(self, rows: Rows) -> Hidden:
        """Propagate along both graphs, and in training project the features of the given items.

        For ``graph``, the last step's site is the given items' rows, [n_i, d]; those before it are all items', [I, d],
        because their neighbours' rows go on from there.
        """
        graph = self.masked_graph if self.training and self.masked_graph is not None else self.graph
        mean = light_gcn(graph, torch.cat([self.users, self.items]), self.config.layers)  # [N, d]
        users, items = users_and_items(mean, len(self.users), training=self.training)
        *inner, last = self.steps
        steps, h = {}, self.items
        for name in inner:
            h = steps[name] = self.item_graph(h)
        steps[last] = take(self.item_graph(h), rows.items)
        features = {name: self._project(name, rows.items) for name in self.modalities} if self.training else {}
        context = {"users": take(users, rows.users), "items": take(items, rows.items)}
        if self.config.inject_at == "projected":
            context["items"] = context["items"] + steps[last]
            return Hidden(features, context, rows)
        context.update({f"step {name}": value for name, value in steps.items()})
        context.update({f"projected {name}": value for name, value in features.items()})
        return Hidden(steps, context, rows)

    def unread_sites(self) -> Mapping[str, Tensor]:
        """Return for ``projected`` every modality's projected features [I, d]: only the loss reads them."""
        if self.config.inject_at != "projected":
            return {}
        return {name: self._project(name, None) for name in self.modalities}

    def _project(self, name: str, rows: Tensor | None) -> Tensor:
        features = take(getattr(self, f"features_{name}"), rows, sparse=True)  # [n_i, F_m]
        projected: Tensor = getattr(self, f"projection_{name}")(features)
        return projected

    def represent(self, hidden: Hidden) -> Latent:
        """Add the items' two halves; what was added to an inner step first goes the rest of the way along S.

        S is linear, so that is h + Σ_l S^(L'-l) (site_l - h_l), and nothing to do for the sites as they came.
        """
        context = hidden.context
        if self.config.inject_at == "projected":
            return Latent(context["users"], context["items"], hidden.sites)
        *inner, last = self.steps
        items = context["items"] + hidden.sites[last]
        added: Tensor | None = None
        for name in inner:
            site, clean = hidden.sites[name], context[f"step {name}"]
            if site is not clean:
                added = site - clean if added is None else added + (site - clean)
            if added is not None:
                added = self.item_graph(added)
        if added is not None:
            items = items + take(added, hidden.rows.items)
        return Latent(context["users"], items, extra=context)

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the BPR term of the scores, and λ times those of each modality's projected features."""
        triples = batch.users, batch.positives, batch.negatives
        terms = {"bpr": bpr_loss(margin(latent.users, latent.items, *triples))}
        if self.modalities:
            tables = latent.modalities or {name: latent.extra[f"projected {name}"] for name in self.modalities}
            losses = [bpr_loss(margin(latent.users, table, *triples)) for table in tables.values()]
            terms["modalities"] = self.config.modality_loss * torch.stack(losses).sum()
        return terms

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return users [n_u, d] and items [n_i, d]: the representations themselves."""
        return latent.users, latent.items

    def item_encoder(self, features: Mapping[str, Tensor]) -> nn.Module:
        """Return what places a new item among its k nearest in each modality (the module's text has the formula)."""
        shares = modality_shares(features, self.config.modality_weights)
        mean = light_gcn(self.graph, torch.cat([self.users, self.items]), self.config.layers)  # [N, d]
        h = self.items
        for _ in self.steps[1:]:
            h = self.item_graph(h)
        used = {name: share for name, share in shares.items() if share > 0}
        return NearestMean(features, used, self.config.neighbours, mean[len(self.users) :] + h)


def item_graph(features: Mapping[str, Tensor], weights: Mapping[str, float], neighbours: int) -> Graph:
    """Return S, the weighted sum of the modalities' nearest-neighbour graphs.

    Args:
        features: Modality name → float32 [I, F_m].
        weights: Modality name → weight, as configured.
        neighbours: k.

    Returns:
        A graph [I, I] whose edges end in an item and start from its neighbours.
    """
    shares = {name: share for name, share in modality_shares(features, weights).items() if share > 0}
    count = len(next(iter(features.values())))
    edges = [knn_graph(features[name], neighbours) for name in shares]  # each [2, I k]
    rows, columns = torch.cat(edges, dim=1)
    values = torch.cat(
        [
            torch.full((part.shape[1],), share * count / part.shape[1], device=part.device)
            for part, share in zip(edges, shares.values(), strict=True)
        ]
    )
    graph = Graph(rows, columns, count, count)
    # An edge that several modalities have is one edge with the sum of its weights.
    places = torch.searchsorted(graph.targets * count + graph.sources, rows * count + columns)
    graph.weights = torch.zeros_like(graph.weights).index_add_(0, places, values)
    return graph


def modality_shares(names: Collection[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Return each modality's share, in sum one (the module's text has the rule).

    Raises:
        ConfigError: The weights leave nothing to share out.
    """
    known = math.fsum(weights[name] for name in names if name in weights)
    named = sum(name in weights for name in names)
    if named and known == 0:
        raise ConfigError(
            f"model.modality_weights: {', '.join(sorted(names))} cannot all have the weight 0; raise one of them"
        )
    return {name: weights[name] / known * (named / len(names)) if name in weights else 1 / len(names) for name in names}
