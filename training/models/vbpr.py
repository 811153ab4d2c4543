"""VBPR: visual Bayesian personalised ranking, extended to any set of modalities.

He and McAuley, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback", AAAI 2016, in the form of the MMRec
toolbox, which later papers build on: the features of all modalities are concatenated and projected together.

    H_i = W [m_1i ‖ … ‖ m_ni] + b          [I, d]      f1, fusion
    e_i = [Q_i ‖ H_i]                      [I, 2d]     f2
    score(u, i) = <P_u, e_i>                           f3

    L0 = BPR + λ (‖P_u‖ + ‖e_pos‖ + ‖e_neg‖) / B       decay: norm, over the rows of a batch of B triples
    L0 = BPR + λ ½ (‖P_u‖² + ‖e_pos‖² + ‖e_neg‖²) / B  decay: squared

Shapes: users P [U, 2d], items Q [I, d], projection W [d, F] with F the sum of all feature widths.

The norm of a whole matrix pulls all of its rows with one force, however many they are; its square is the usual weight
decay, of the rows that a batch touches.

MMRec writes -log(1e-10 + σ(x)) where ``bpr_loss`` has softplus: the same number wherever σ(x) is well above 1e-10.

Defaults: d = 64 and the initial values (Xavier uniform for P and Q, Xavier normal for W, zero for b) are MMRec's; λ is
the middle of MMRec's grid {2, 1, .1, .01, 1e-3, 1e-4, 1e-5}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.common.errors import ConfigError, DataError
from training.models.base import Batch, Hidden, Latent, ModelConfig, ModelData, Recommender, Rows
from training.models.layers import batch_norm_of, batch_square_sum, bpr_loss, margin, take


class VBPRConfig(ModelConfig):
    """Hyper-parameters of VBPR."""

    dimension: int = Field(
        64, ge=1, le=65_536, description="d, width of the id half and of the feature half of an item vector"
    )
    regularisation: float = Field(0.01, ge=0, allow_inf_nan=False, description="λ, weight of the embeddings' decay")
    decay: Literal["norm", "squared"] = Field(
        "norm", description="what λ weighs: the norms of a batch's matrices (MMRec), or half of their squares"
    )
    new_item_id: Literal["zero", "mean"] = Field(
        "mean", description="id half of an item that was not there in training: zeros, or the mean over all items"
    )


class VBPR(Recommender):
    """VBPR over concatenated modalities. See the module's text for formulas and sources."""

    Config = VBPRConfig
    shifts_features = True

    def __init__(self, config: ModelConfig, data: ModelData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        if not isinstance(config, VBPRConfig):
            raise ConfigError(f"VBPR wants a VBPRConfig, got {type(config).__name__}")
        if not data.features:
            raise DataError("VBPR needs features of at least one modality, the data set has none; add NAME_feat.npy")
        self.config = config
        self.modalities = tuple(data.features)
        self.widths = [matrix.shape[1] for matrix in data.features.values()]
        features = torch.cat([data.features[name] for name in self.modalities], dim=1)  # [I, F]
        self.register_buffer("features", features, persistent=False)
        self.features: Tensor
        d = config.dimension
        self.site_widths = {"fused": d}
        self.users = nn.Parameter(torch.empty(data.n_users, 2 * d))
        self.items = nn.Parameter(torch.empty(data.n_items, d))
        self.weight = nn.Parameter(torch.empty(d, features.shape[1]))
        self.bias = nn.Parameter(torch.zeros(d))
        nn.init.xavier_uniform_(self.users, generator=generator)
        nn.init.xavier_uniform_(self.items, generator=generator)
        nn.init.xavier_normal_(self.weight, generator=generator)

    def hidden(self, rows: Rows) -> Hidden:
        """Project the features of the given items: one site ``fused`` [n_i, d]."""
        features = take(self.features, rows.items)
        if rows.shift:
            parts = zip(self.modalities, torch.split(features, self.widths, dim=1), strict=True)
            features = torch.cat([part + rows.shift.get(name, 0) for name, part in parts], dim=1)
        fused = F.linear(features, self.weight, self.bias)
        return Hidden(
            sites={"fused": fused},
            context={"users": take(self.users, rows.users), "items": take(self.items, rows.items)},
        )

    def represent(self, hidden: Hidden) -> Latent:
        """Append the projected features to the items' id embeddings."""
        items = torch.cat([hidden.context["items"], hidden.sites["fused"]], dim=1)  # [n_i, 2d]
        return Latent(users=hidden.context["users"], items=items)

    def loss(self, latent: Latent, batch: Batch) -> dict[str, Tensor]:
        """Return the BPR term."""
        return {"bpr": bpr_loss(margin(latent.users, latent.items, batch.users, batch.positives, batch.negatives))}

    def decay(self, latent: Latent, batch: Batch) -> Tensor:
        """Return λ times the sum of the norms, or half of the squares, of the batch's three matrices, over B."""
        if self.config.decay == "squared":
            items = torch.cat([batch.positives, batch.negatives])
            size = 0.5 * (batch_square_sum(latent.users, batch.users) + batch_square_sum(latent.items, items))
        else:
            norms = (
                batch_norm_of(latent.users, batch.users),
                batch_norm_of(latent.items, batch.positives),
                batch_norm_of(latent.items, batch.negatives),
            )
            size = torch.stack(norms).sum()
        return self.config.regularisation * size / len(batch.users)

    def towers(self, latent: Latent) -> tuple[Tensor, Tensor]:
        """Return users [n_u, 2d] and items [n_i, 2d]: the representations themselves."""
        return latent.users, latent.items

    def item_encoder(self, features: Mapping[str, Tensor]) -> nn.Module:
        """Return what gives a new item [id half ‖ W m + b]: the second half is exact, the first the same for all."""
        del features
        id_half = self.items.mean(dim=0) if self.config.new_item_id == "mean" else torch.zeros_like(self.items[0])
        return _Encoder(self.modalities, id_half, self.weight, self.bias)


class _Encoder(nn.Module):
    def __init__(self, modalities: tuple[str, ...], id_half: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.modalities = modalities
        for name, value in (("id_half", id_half), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, value.detach().clone())
        self.id_half: Tensor  # [d]
        self.weight: Tensor  # [d, F]
        self.bias: Tensor  # [d]

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        fused = F.linear(torch.cat([features[name] for name in self.modalities], dim=1), self.weight, self.bias)
        return torch.cat([self.id_half.expand(fused.shape[0], -1), fused], dim=1)  # [n, 2d]
