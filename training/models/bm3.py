"""BM3: bootstrapped multimodal recommendation without negative samples.

Zhou et al., "Bootstrap Latent Representations for Multi-modal Recommendation", WWW 2023, in the form of the MMRec
toolbox, for any set of modalities.

    [ū ; ī] = mean(x, Âx, …, Â^L x),  x = [P ; Q]     [N, d]    LightGCN, users first
    u = ū,  i = ī + Q                                           residual on the items' side
    m = X_m W_m^T + b_m                               [I, d]    one projection per modality
    pred(z) = W z + b                                           the predictor, shared by everything online
    z* = stopgrad(dropout(z))                                   targets: nothing learns through them
    score(u, i) = <pred(u), pred(i)>

    C(a, b) = 1 - mean cos(a, b)                      over the rows of a batch of B pairs (u, i)
    L0 = C(pred(u), i*) + C(pred(i), u*) + 2 Σ_m [C(pred(m), i*) + C(pred(m), m*)] + λ (‖u‖_F + ‖i‖_F) / I

The two norms of the decay run over all users and all items. The feature tables X_m [I, F_m] are parameters, as in
MMRec, initialised from the features; ranking reads neither them nor the projections.

Sites: one per modality, named after it, H_m = m (so the WWW 2025 paper, Appendix D, and its authors' code); f2 is the
predictor together with the target branch. pred(u) and pred(i), which no site reaches, are computed once for all passes.

Defaults: d = 64, the weight 2 and the initial values (Xavier uniform for P and Q, Xavier normal for weights,
U(±1/√fan_in) for biases) are MMRec's; L = 1, p = 0.5 and λ = 0.1 are those that BM3's authors give for Baby.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from training.common.errors import ConfigError, DataError
from training.graph import Graph, light_gcn, users_and_items
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import cosine_sum, linear, summed_rows, take, unit_rows


class BM3Config(ModelConfig):
    """Hyper-parameters of BM3."""

    dimension: int = Field(64, ge=1, le=65_536, description="d, width of the embeddings (MMRec)")
    layers: int = Field(1, ge=1, le=16, description="L, propagation steps (BM3's authors for Baby; grid {1, 2})")
    dropout: float = Field(0.5, ge=0, lt=1, description="p, dropout of the targets (BM3's authors; grid {.3, .5})")
    regularisation: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="λ, weight of the two norms (BM3's authors; grid {.1, .01})"
    )
    modality_weight: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="weight of the modalities' terms (MMRec)"
    )
    trained_features: bool = Field(
        True, description="train the feature tables, as MMRec does, or leave them as they are"
    )
    id_noise: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="deviation of noise added to the initial embeddings (0.01 in the authors' code of BM3_a)",
    )


class BM3(Recommender):
    """BM3. See the module's text for formulas and sources."""

    Config = BM3Config
    samples_negatives = False
    no_item_encoder = "BM3 reads features in training only: it ranks by item embeddings that only interactions teach"

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, BM3Config):
            raise ConfigError(f"BM3 wants a BM3Config, got {type(config).__name__}")
        if not data.features:
            raise DataError("BM3 needs features of at least one modality, the data set has none; add NAME_feat.npy")
        self.config = config
        self.modalities = tuple(data.features)
        self.site_widths = dict.fromkeys(self.modalities, config.dimension)
        self.graph = Graph.normalised(data.edges, data.n_users, data.n_items)
        self.users = nn.Parameter(torch.empty(data.n_users, config.dimension))
        self.items = nn.Parameter(torch.empty(data.n_items, config.dimension))
        nn.init.xavier_uniform_(self.users, generator=generator)
        nn.init.xavier_uniform_(self.items, generator=generator)
        self.predictor = linear(config.dimension, config.dimension, generator, xavier=True)
        for name, matrix in data.features.items():
            self.add_module(f"projection_{name}", linear(matrix.shape[1], config.dimension, generator, xavier=True))
            if config.trained_features:
                self.register_parameter(f"features_{name}", nn.Parameter(matrix.clone()))
            else:
                self.register_buffer(f"features_{name}", matrix, persistent=False)
        if config.id_noise > 0:
            for table in (self.users, self.items):
                table.data.add_(torch.empty_like(table).normal_(0.0, config.id_noise, generator=generator))

    def hidden(self, rows: Rows) -> Hidden:
        """Propagate, predict users and items, and in training project the items' features: one site per modality."""
        ego = torch.cat([self.users, self.items])  # [N, d]
        propagated = light_gcn(self.graph, ego, self.config.layers)
        users, items = users_and_items(propagated, len(self.users), training=self.training)
        items = items + self.items
        user_rows, item_rows = take(users, rows.users), take(items, rows.items)
        context = {"users": self.predictor(user_rows), "items": self.predictor(item_rows)}
        if not self.training:
            return Hidden({}, context, rows)
        context["norms"] = torch.linalg.vector_norm(users) + torch.linalg.vector_norm(items)
        sites = {name: self._project(name, rows.items) for name in self.modalities}
        kept = 1.0 - self.config.dropout
        sizes = [len(user_rows), *[len(item_rows)] * (1 + len(sites))]
        masks = torch.rand(
            sum(sizes), self.config.dimension, generator=self.current_generator(), device=user_rows.device
        )
        # A comparison of uniform numbers: the same as bernoulli_, in a third of the time.
        user_mask, item_mask, *site_masks = torch.split(masks.lt_(kept).div_(kept), sizes)
        context["user targets"] = unit_rows(user_rows.detach() * user_mask)
        context["item targets"] = unit_rows(item_rows.detach() * item_mask)
        context.update({f"mask of {name}": mask for name, mask in zip(sites, site_masks, strict=True)})
        return Hidden(sites, context, rows)

    def _project(self, name: str, rows: Tensor | None) -> Tensor:
        features = take(getattr(self, f"features_{name}"), rows, sparse=True)  # [n_i, F_m]
        projected: Tensor = getattr(self, f"projection_{name}")(features)
        return projected

    def unread_sites(self) -> Mapping[str, Tensor]:
        """Return every modality's projected features [I, d]: only the loss reads them."""
        return {name: self._project(name, None) for name in self.modalities}

    def represent(self, hidden: Hidden) -> Latent:
        """Predict from the modalities, and in training make their targets with the masks drawn in ``hidden``."""
        context = hidden.context
        targets = {
            f"targets of {name}": unit_rows(site.detach() * context[f"mask of {name}"])
            for name, site in hidden.sites.items()
            if self.training
        }
        predicted = {name: self.predictor(site) for name, site in hidden.sites.items()}
        return Latent(context["users"], context["items"], predicted, {**context, **targets})

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of users against items, and of the modalities against items and themselves."""
        extra, users, items = latent.extra, batch.users, batch.positives
        # A row meets the sum of its targets: every distinct row once, whatever the batch repeats.
        to_users = summed_rows(extra["item targets"], items, users, len(latent.users))
        to_items = summed_rows(extra["user targets"], users, items, len(latent.items))
        cosines = cosine_sum(latent.users, to_users) + cosine_sum(latent.items, to_items)
        shares = (torch.bincount(items, minlength=len(latent.items)) / len(users)).unsqueeze(1)
        modalities = [
            2 - cosine_sum(z, shares * (extra["item targets"] + extra[f"targets of {name}"]))
            for name, z in latent.modalities.items()
        ]
        return {
            "user_item": 2 - cosines / len(users),
            "modalities": self.config.modality_weight * torch.stack(modalities).sum(),
        }

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times the Frobenius norms of all users and of all items, over the number of items."""
        del batch
        return self.config.regularisation / len(self.items) * latent.extra["norms"]

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return predicted users [n_u, d] and items [n_i, d]."""
        return latent.users, latent.items
