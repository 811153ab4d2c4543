"""MMGCN: one graph convolution network per modality, averaged.

Wei, Wang, Nie, He, Hong and Chua, "MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of
Micro-video", ACM Multimedia 2019, in the form of the MMRec toolbox. For every modality m of width F_m, with
D = ``projected_width`` where F_m > ``project_above`` and D = F_m otherwise:

    f   = P m + p where F_m > ``project_above``, m otherwise                      [I, D]
    x_0 = [T/‖T‖ ; f/‖f‖]   row by row, users first, T the preferences            [N, D]
    h   = lrelu(mean over neighbours of x_{l-1} W_l)                              layer l = 1 … L; W_1 D×D, then d×d
    s   = lrelu(S_l x_{l-1} + c_l) + id                                           [N, d]
    x_l = lrelu(G_l [h ‖ s] + b_l)                                                [N, d]
    Z   = mean over modalities of x_L                                             [N, d]
    score(u, i) = <Z_u, Z_i>

    L0 = BPR + λ (mean(id_u² + id_i²) + Σ_m mean(T_m²)), the first mean over the 2B (user, item) rows of a batch

A node without neighbours hears zero. The id embedding [N, d] is one for all modalities, everything else belongs to one.
MMRec's decay counts the preferences of the images alone.

Sites, one per modality under its name: ``projected``, H = f/‖f‖ [I, D]; ``input``, H = m [I, F_m], where the WWW 2025
authors' code perturbs it. f2 is the whole network. What H cannot reach is computed once, in ``hidden``: the users' own
part of the first layer, and what the items hear in it.

Order of operations: the mean commutes with W_l, so W_l multiplies on whichever side of the edges has fewer rows. The
last layer multiplies only the rows asked for. [h ‖ s] is never formed: G_l is applied to its halves.

Defaults: d = 64, L = 3 (MMRec's code has no other), a width of 256 for images of 4096 and raw texts of 384, Xavier
normal for the tables, W, S and G_1 and PyTorch's default for P, G_2, G_3 and the biases are MMRec's; its λ has no
effect, since its tables are never optimised (``train_tables=False``): ours is the middle of its grid.
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


class MMGCNConfig(ModelConfig):
    """Hyper-parameters of MMGCN."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the id embedding and of every output (MMRec)")
    layers: int = Field(3, ge=1, le=16, description="L, graph convolutions per modality (MMRec)")
    projected_width: int = Field(256, ge=1, le=65_536, description="D of the modalities that are projected (MMRec)")
    project_above: int = Field(1024, ge=0, description="modalities wider than this are projected, others enter as are")
    regularisation: float = Field(1e-3, ge=0, allow_inf_nan=False, description="λ, weight of the mean squared tables")
    train_tables: bool = Field(
        True, description="learn the id embedding and the preferences; false keeps them as drawn (authors' code, MMRec)"
    )
    inject_at: Literal["projected", "input"] = Field(
        "projected", description="what H is: the items' normalised (projected) features, or the raw features"
    )


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, inplace=True)  # no input of ours is needed for the backward pass of what made it


class _Convolution(nn.Module):
    """One layer, x_{l-1} → x_l, in two halves: ``lrelu(heard + own)``."""

    def __init__(self, width: int, dimension: int, generator: torch.Generator, *, first: bool) -> None:
        super().__init__()
        self.neighbours = linear(width, width, generator, xavier=True, bias=False)  # W_l
        self.self_loop = linear(width, dimension, generator, xavier=True)  # S_l, c_l
        self.joined = linear(width + dimension, dimension, generator, xavier=first)  # G_l, b_l

    def heard(self, graph: Graph, sources: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return G_l's half for h, and b_l: [T, d], or the given rows of it, from x_{l-1} of the sources [S, D]."""
        if rows is None and graph.shape[0] > graph.shape[1]:
            h = graph(self.neighbours(sources))
        else:
            h = self.neighbours(take(graph(sources), rows))
        return F.linear(_lrelu(h), self.joined.weight[:, : h.shape[1]], self.joined.bias)

    def own(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return G_l's half for s [n, d], from the nodes' x_{l-1} [n, D] and id embedding [n, d]."""
        return F.linear(_lrelu(self.self_loop(x)) + ids, self.joined.weight[:, x.shape[1] :])


class _Network(nn.Module):
    """What belongs to one modality."""

    features: Tensor
    preferences: Tensor

    def __init__(self, config: MMGCNConfig, features: Tensor, n_users: int, generator: torch.Generator) -> None:
        super().__init__()
        width = features.shape[1]
        self.projection: nn.Linear | None = None
        if width > config.project_above:
            self.projection = linear(width, config.projected_width, generator, xavier=False)
            width = config.projected_width
        elif config.inject_at == "projected":
            features = unit_rows(features)  # the site itself, which then never changes
        self.register_buffer("features", features, persistent=False)
        self.inject_at = config.inject_at
        preferences = nn.init.xavier_normal_(torch.empty(n_users, width), generator=generator)
        _keep(self, "preferences", preferences, learned=config.train_tables)
        widths = [width, *[config.dimension] * (config.layers - 1)]
        self.convolutions = [
            _Convolution(width, config.dimension, generator, first=layer == 0) for layer, width in enumerate(widths)
        ]
        self.layers = nn.ModuleList(self.convolutions)
        self.site_width = features.shape[1] if config.inject_at == "input" else width

    def site(self) -> Tensor:
        """Return H."""
        return self.features if self.inject_at == "input" or self.projection is None else self.start(self.features)

    def start(self, features: Tensor) -> Tensor:
        """Return the items' rows of x_0 [I, D] from raw features [I, F_m]."""
        return unit_rows(features if self.projection is None else self.projection(features))


def _keep(module: nn.Module, name: str, table: Tensor, *, learned: bool) -> None:
    if learned:
        module.register_parameter(name, nn.Parameter(table))
    else:
        module.register_buffer(name, table)


class MMGCN(Recommender):
    """MMGCN. See the module's text for formulas and sources."""

    Config = MMGCNConfig
    no_item_encoder = "MMGCN adds an id embedding in each layer: a new item's would be random"
    id_users: Tensor
    id_items: Tensor

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, MMGCNConfig):
            raise ConfigError(f"MMGCN wants a MMGCNConfig, got {type(config).__name__}")
        if not data.features:
            raise DataError("MMGCN needs features of at least one modality, the data set has none; add NAME_feat.npy")
        self.config = config
        self.to_users = Graph.averaging(data.edges[0], data.edges[1], data.n_users, data.n_items)
        self.to_items = Graph.averaging(data.edges[1], data.edges[0], data.n_items, data.n_users)
        ids = nn.init.xavier_normal_(torch.empty(data.n_users + data.n_items, config.dimension), generator=generator)
        _keep(self, "id_users", ids[: data.n_users].clone(), learned=config.train_tables)
        _keep(self, "id_items", ids[data.n_users :].clone(), learned=config.train_tables)
        self.networks: dict[str, _Network] = {}
        for name, features in data.features.items():
            self.networks[name] = _Network(config, features, data.n_users, generator)
            self.add_module(f"of_{name}", self.networks[name])
        self.site_widths = {name: network.site_width for name, network in self.networks.items()}

    def hidden(self, rows: Rows) -> Hidden:
        """Return a site for each modality, named by it, and the parts of the first layer that no site reaches."""
        sites, context = {}, {}
        for name, network in self.networks.items():
            sites[name] = network.site()
            users, first = unit_rows(network.preferences), network.convolutions[0]
            context[f"{name}/own"] = first.own(users, self.id_users)  # [U, d]
            context[f"{name}/heard"] = first.heard(self.to_items, users)  # [I, d]
        if self.training:
            context |= {"id_users": take(self.id_users, rows.users), "id_items": take(self.id_items, rows.items)}
        return Hidden(sites, context, rows)

    def represent(self, hidden: Hidden) -> Latent:
        """Run the networks and average them."""
        users, items = zip(*(self._run(name, hidden) for name in self.networks), strict=True)
        return Latent(sum(users) / len(users), sum(items) / len(items), extra=hidden.context)

    def _run(self, name: str, hidden: Hidden) -> tuple[Tensor, Tensor]:
        network, site, rows = self.networks[name], hidden.sites[name], hidden.rows
        first, *others = network.convolutions
        start = network.start(site) if self.config.inject_at == "input" else site  # [I, D]
        users = _lrelu(first.heard(self.to_users, start) + hidden.context[f"{name}/own"])  # [U, d]
        items = _lrelu(first.own(start, self.id_items) + hidden.context[f"{name}/heard"])  # [I, d]
        if not others:
            return take(users, rows.users), take(items, rows.items)
        for layer in others:
            of = rows if layer is others[-1] else Rows()
            own_users = layer.own(take(users, of.users), take(self.id_users, of.users))
            own_items = layer.own(take(items, of.items), take(self.id_items, of.items))
            users, items = (
                _lrelu(layer.heard(self.to_users, items, of.users) + own_users),
                _lrelu(layer.heard(self.to_items, users, of.items) + own_items),
            )
        return users, items

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the BPR term."""
        return {"bpr": bpr_loss(margin(latent.users, latent.items, batch.users, batch.positives, batch.negatives))}

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times the mean squares of the batch's id embeddings and of every preference table."""
        users, items = latent.extra["id_users"], latent.extra["id_items"]
        # Each triple gives two (user, item) rows, one with the positive and one with the negative item.
        squares = 2 * batch_square_sum(users, batch.users)
        squares = squares + batch_square_sum(items, torch.cat([batch.positives, batch.negatives]))
        means = squares / (2 * len(batch.users) * self.config.dimension)
        for network in self.networks.values():
            table = network.preferences
            means = means + torch.linalg.vector_norm(table).square() / table.numel()
        return self.config.regularisation * means

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return users [n_u, d] and items [n_i, d]: the representations themselves."""
        return latent.users, latent.items
