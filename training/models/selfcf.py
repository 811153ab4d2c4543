"""SelfCF: self-supervised collaborative filtering, its variant with embedding dropout on LightGCN (SELFCFED_LGN).

Zhou et al., "SelfCF: A Simple Framework for Self-supervised Collaborative Filtering", ACM TORS 2023, in the form of the
MMRec toolbox. Needs neither modalities nor negative samples.

    [u ; i] = mean(x, Âx, …, Â^L x),  x = [P ; Q]     [N, d]    LightGCN, users first
    pred(z) = W z + b
    z* = stopgrad(dropout(z))                                   targets: nothing learns through them
    score(u, i) = <pred(u), i> + <u, pred(i)>

    L0 = -½ mean cos(pred(u), i*) - ½ mean cos(pred(i), u*) + λ · ½ Σ (‖u‖² + ‖i‖²)     over the rows of a batch

The cosines are means over the batch, the squares a sum. Every training pass draws a rate r from U(0, 1), drops each of
Â's 2E entries independently with probability r and divides the others by 1 - r; the two directions of an interaction
are separate entries. MMRec lets r come arbitrarily close to 1, where nothing is left; here it stops at 0.95. Inference
uses Â. A row that a batch repeats has one target; MMRec draws a mask for each repetition.

Sites: ``users`` and ``items``, H = [u ; i]; f2 is the predictor together with the target branch. So have the remains of
the WWW 2025 authors' code for this model.

Defaults: d = 64 and the initial values (Xavier uniform for P and Q, U(±1/√d) for W and b) are MMRec's; L, p and λ were
chosen from MMRec's grids {1, 2}, {.1, .2, .5} and {.1, .01, 1e-3, 1e-4, 1e-5, 0} on Baby's validation split. Cosines do
not see how long a vector is, so that λ only shrinks: at 1e-4 the ranking falls apart within few epochs.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from training.common.errors import ConfigError
from training.graph import Graph, light_gcn, users_and_items
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import batch_square_sum, cosine_sum, linear, summed_rows, take, unit_rows


class SelfCFConfig(ModelConfig):
    """Hyper-parameters of SelfCF."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the embeddings (MMRec)")
    layers: int = Field(1, ge=1, le=16, description="L, propagation steps (MMRec's grid {1, 2})")
    dropout: float = Field(0.5, ge=0, lt=1, description="p, dropout of the targets (MMRec's grid {.1, .2, .5})")
    regularisation: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="λ, weight of the squared embeddings, summed over the batch"
    )
    max_edge_dropout: float = Field(
        0.95, ge=0, lt=1, description="largest rate at which a training pass drops the graph's entries"
    )


class SelfCF(Recommender):
    """SelfCF. See the module's text for formulas and sources."""

    Config = SelfCFConfig
    samples_negatives = False
    no_item_encoder = "SelfCF reads no features: it ranks by item embeddings that only interactions teach"

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, SelfCFConfig):
            raise ConfigError(f"SelfCF wants a SelfCFConfig, got {type(config).__name__}")
        self.config = config
        self.site_widths = {"users": config.dimension, "items": config.dimension}
        self.graph = Graph.normalised(data.edges, data.n_users, data.n_items)
        self.users = nn.Parameter(torch.empty(data.n_users, config.dimension))
        self.items = nn.Parameter(torch.empty(data.n_items, config.dimension))
        nn.init.xavier_uniform_(self.users, generator=generator)
        nn.init.xavier_uniform_(self.items, generator=generator)
        self.predictor = linear(config.dimension, config.dimension, generator, xavier=False)

    def hidden(self, rows: Rows) -> Hidden:
        """Propagate, in training over a randomly thinned graph: sites ``users`` [n_u, d] and ``items`` [n_i, d]."""
        weights = self._thinned() if self.training else None
        ego = torch.cat([self.users, self.items])  # [N, d]
        encoded = light_gcn(self.graph, ego, self.config.layers, weights)
        users, items = users_and_items(encoded, len(self.users), training=self.training)
        sites = {"users": take(users, rows.users), "items": take(items, rows.items)}
        context = {name: self._mask(site) for name, site in sites.items()} if self.training else {}
        return Hidden(sites, context, rows)

    def _thinned(self) -> Tensor:
        weights = self.graph.weights
        draws = torch.rand(len(weights) + 1, generator=self.current_generator(), device=weights.device)
        rate = draws[0].clamp(max=self.config.max_edge_dropout)
        return dropped_weights(weights, rate, draws[1:] >= rate)

    def _mask(self, site: Tensor) -> Tensor:
        kept = 1.0 - self.config.dropout
        # A comparison of uniform numbers: the same as bernoulli_, in a third of the time.
        return torch.rand(site.shape, generator=self.current_generator(), device=site.device).lt_(kept).div_(kept)

    def represent(self, hidden: Hidden) -> Latent:
        """Predict from both sites, and make the targets with the masks that were drawn in ``hidden``."""
        sites = hidden.sites
        extra = {f"encoded {name}": site for name, site in sites.items()}
        for name, mask in hidden.context.items():
            extra[f"{name} targets"] = unit_rows(sites[name].detach() * mask)
        return Latent(self.predictor(sites["users"]), self.predictor(sites["items"]), extra=extra)

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the two cosine terms as one."""
        extra, users, items = latent.extra, batch.users, batch.positives
        # A row meets the sum of its targets: every distinct row once, whatever the batch repeats.
        to_users = summed_rows(extra["items targets"], items, users, len(latent.users))
        to_items = summed_rows(extra["users targets"], users, items, len(latent.items))
        cosines = cosine_sum(latent.users, to_users) + cosine_sum(latent.items, to_items)
        return {"cosine": -0.5 / len(users) * cosines}

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times half the squared users and items, before the predictor, summed over the batch."""
        squares = batch_square_sum(latent.extra["encoded users"], batch.users) + batch_square_sum(
            latent.extra["encoded items"], batch.positives
        )
        return 0.5 * self.config.regularisation * squares

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return [pred(u) ‖ u] [n_u, 2d] and [i ‖ pred(i)] [n_i, 2d]: two inner products as one."""
        users, items = latent.extra["encoded users"], latent.extra["encoded items"]
        return torch.cat([latent.users, users], dim=1), torch.cat([items, latent.items], dim=1)


def dropped_weights(weights: Tensor, rate: Tensor, keep: Tensor) -> Tensor:
    """Return edge weights after dropout: the kept ones over 1 - rate, the others zero.

    Args:
        weights: float32 [E].
        rate: Scalar below 1, the probability with which an edge was dropped.
        keep: bool [E].

    Returns:
        float32 [E].
    """
    return weights * keep / (1 - rate)
