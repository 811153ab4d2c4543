"""LayerGCN: layer-refined graph convolution for recommendation.

Zhou, Lin, Liu and Miao, "Layer-refined Graph Convolutional Networks for Recommendation", ICDE 2023, in the form of the
MMRec toolbox. Needs no modality.

    x_0 = [P ; Q]                          [N, d]    ego embeddings, users first
    h_l = Â' x_{l-1}
    x_l = cos(h_l, x_0) · h_l                        refinement, row by row; x_l feeds layer l + 1
    Z   = x_1 + … + x_L                    [N, d]    the ego layer is left out
    score(u, i) = <Z_u, Z_i>

    L0 = Σ_batch -log σ(margin) + λ · ½ (‖x_0,u‖² + ‖x_0,pos‖² + ‖x_0,neg‖²)     a sum over the batch, not a mean

Training prunes edges: each epoch keeps ⌊E(1 - p)⌋ of them and normalises what is left, in odd epochs by degree
(``edges_by_degree``), in even ones uniformly. Inference uses the full graph, Â.

Sites: ``output``, H = Z with f2 the identity; ``ego``, H = x_0 with f2 the propagation. Neither the paper that
perturbs H (WWW 2025) nor its authors' code says where it is in this model.

Defaults: d = 64, L = 4 and Xavier uniform are MMRec's; λ and p are the middle of MMRec's grids {.01, 1e-3, 1e-4, 1e-5}
and {0, .1, .2}.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.common.errors import ConfigError
from training.graph import Graph, edges_at_random, edges_by_degree, users_and_items
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import batch_square_sum, margin, take

_EPSILON = 1e-8
"""Least norm of a cosine's two sides, as in torch's own: an isolated node has the cosine 0."""


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
    no_item_encoder = "LayerGCN reads no features: it ranks by item embeddings that only interactions teach"

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
        if self.training:
            total: Tensor = _Refined.apply(ego, graph, self.config.layers)  # type: ignore[no-untyped-call]
        else:
            # The cosine of nearly orthogonal vectors is a small difference of large numbers, and every layer multiplies
            # its error: in float32 two runtimes would differ by more than a proof of equality allows.
            total = self._refined(ego.double(), graph).to(ego.dtype)
        return users_and_items(total, len(users), training=self.training)

    def _refined(self, ego: Tensor, graph: Graph) -> Tensor:
        """Return x_1 + … + x_L [N, d] of x_0, in its precision."""
        x, total = ego, torch.zeros_like(ego)
        ego_square = _square(ego)
        for _ in range(self.config.layers):
            h = graph(x)
            cosines = (h * ego).sum(1, keepdim=True) / (_square(h) * ego_square).sqrt()
            x = cosines * h
            total = total + x
        return total

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


def _square(x: Tensor) -> Tensor:
    """Return the squared norm of every row [n, 1]; written out, because ONNX Runtime has no ReduceL2 of float64."""
    return (x * x).sum(1, keepdim=True).clamp_min(_EPSILON**2)


class _Refined(torch.autograd.Function):
    """The training pass x_0 → x_1 + … + x_L [N, d] with its gradient by hand.

    What takes the time is not arithmetic but passing over tensors of [N, d], and finding memory for them: autograd's
    own graph of a cosine makes some forty, of which these loops need ten, mostly in place.
    """

    @staticmethod
    def forward(ctx: Any, ego: Tensor, graph: Graph, layers: int) -> Tensor:
        ego_norms = torch.linalg.vector_norm(ego, dim=1, keepdim=True).clamp_(min=_EPSILON)  # [N, 1]
        total, x, saved = torch.zeros_like(ego), ego, []
        scratch = torch.empty_like(ego)
        for _ in range(layers):
            h = graph(x)
            norms = torch.linalg.vector_norm(h, dim=1, keepdim=True).clamp_(min=_EPSILON)
            cosines = torch.mul(h, ego, out=scratch).sum(1, keepdim=True).div_(norms).div_(ego_norms)
            total.addcmul_(h, cosines)
            x = torch.mul(h, cosines, out=scratch)
            saved += [h, norms, cosines]
        ctx.save_for_backward(ego, ego_norms, *saved)
        ctx.graph = graph
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        ego, ego_norms, *saved = ctx.saved_tensors
        graph, to_total = ctx.graph, grad_outputs[0]
        to_ego, shrink = torch.zeros_like(ego), torch.zeros_like(ego_norms)
        scratch, to_x = torch.empty_like(ego), to_total
        for start in range(len(saved) - 3, -1, -3):
            h, norms, cosines = saved[start : start + 3]
            # x = c h with c = <h, e> / (|h| |e|), so dc/dh = e / (|h| |e|) - c h / |h|², and likewise for e.
            to_cosine = torch.mul(to_x, h, out=scratch).sum(1, keepdim=True)
            cross = to_cosine / (norms * ego_norms)
            to_ego.addcmul_(h, cross)
            shrink += to_cosine * cosines / ego_norms.square()
            to_h = torch.mul(to_x, cosines, out=scratch).addcmul_(ego, cross)
            to_h.addcmul_(h, to_cosine.mul_(cosines).div_(norms.square()), value=-1)
            to_x = graph(to_h).add_(to_total if start else to_ego)  # the graph is symmetric
        return to_x.addcmul_(ego, shrink, value=-1), None, None
