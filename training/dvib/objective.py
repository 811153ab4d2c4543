"""Objectives: how a model's own loss becomes the loss of a training step.

``PlainObjective`` is the model's loss. ``DvibObjective`` wraps any model with the second pass of the paper's
Algorithm 1. The model inside is the same class with the same tensors, so taking ``objective.model`` *is* the stripping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.dvib.config import DvibConfig
from training.dvib.divergence import jensen_shannon, ref_entropy
from training.dvib.perturbation import NetPhi, perturb
from training.dvib.regulariser import eq13, kl_std
from training.models.base import Batch, Hidden, Latent, Recommender

Divergence = Callable[[Tensor, Tensor], Tensor]
_DIVERGENCES: dict[str, Divergence] = {"js": jensen_shannon, "ref_entropy": ref_entropy}
_SCORE_BLOCK = 16_000_000
"""Scores of one pass held at once while distilling over all items; about half a gigabyte with all temporaries."""


def add_up(values: Iterable[Tensor]) -> Tensor:
    """Add scalars one by one: stacking them first would cost several more operations each way."""
    return reduce(torch.add, values)


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step.

    Attributes:
        total: Scalar with a graph, to be minimised.
        terms: Detached scalars for the log, unweighted unless the name says otherwise.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective(nn.Module):
    """A model together with the loss it is trained by."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def batch(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Arrange triples of rows (int64 [B] each) for this objective."""
        return Batch.of(users, positives, negatives)

    def step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute the loss of one batch.

        Args:
            batch: From ``self.batch``.
            noise: Generator of the perturbation, on the model's device; nothing else draws from it.
        """
        raise NotImplementedError

    def general(self, latent: Latent, batch: Batch, *, decay: bool = True) -> dict[str, Tensor]:
        """Return the terms of L0, with the model's weight decay among them unless told otherwise."""
        terms = self.model.loss(latent, batch)
        penalty = self.model.decay(latent, batch) if decay else None
        return terms if penalty is None else {**terms, "decay": penalty}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that exist for training only, by name."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("model.")}


class PlainObjective(Objective):
    """The model's own loss, L0."""

    def step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute L0; draws no noise."""
        del noise
        terms = self.general(self.model.represent(self.model.hidden(batch.rows)), batch)
        total = add_up(terms.values())
        return StepLoss(total, {name: value.detach() for name, value in terms.items()})


class DvibObjective(Objective):
    """L0 and the DVIB terms (paper, Eq. 7–14 and Algorithm 1).

    Args:
        model: Any recommender.
        config: Variant ``constant`` or ``adaptive``.
        generator: CPU generator for Net_φ's initial weights.
    """

    def __init__(self, model: Recommender, config: DvibConfig, generator: torch.Generator) -> None:
        super().__init__(model)
        self.config = config
        self.net_phi = nn.ModuleDict()
        if config.variant == "adaptive":
            for name, width in model.site_widths.items():
                self.net_phi[f"at_{name}"] = NetPhi(width, config.net_phi_hidden, generator)

    def batch(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Arrange triples for the rows that this configuration covers."""
        return Batch.of(users, positives, negatives, all_items=self.config.rows == "all")

    def step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute the total loss of Eq. 8 (or its convex form)."""
        config = self.config
        hidden = self.model.hidden(batch.rows)
        scales = self._scales(hidden)
        noisy_sites = {name: perturb(h, scales[name], noise) for name, h in hidden.sites.items()}
        perturbed = replace(hidden, sites=noisy_sites)
        clean_latent, perturbed_latent = self.model.represent(hidden), self.model.represent(perturbed)
        clean = self.general(clean_latent, batch)
        noisy = self.general(perturbed_latent, batch, decay=config.decay_both)
        general = add_up(clean.values())
        general_noisy = add_up(noisy.values())
        distillation = self._divergence(_DIVERGENCES[config.divergence], clean_latent, perturbed_latent, batch)
        keep = 1.0 - config.gamma_d if config.mix == "convex" else 1.0
        total = keep * (general + config.gamma_0 * general_noisy) + config.gamma_d * distillation
        log = {
            **{name: value.detach() for name, value in clean.items()},
            "general": general.detach(),
            "general_perturbed": general_noisy.detach(),
            "distillation": distillation.detach(),
        }
        if config.divergence == "js":
            log["js"] = log["distillation"]
        else:
            with torch.no_grad():
                log["js"] = self._divergence(jensen_shannon, clean_latent, perturbed_latent, batch)
        if config.variant == "adaptive":
            regulariser = self._regulariser(hidden, scales)
            total = total + config.gamma_r * regulariser
            log["variational"] = regulariser.detach()
            log["phi_mean"] = torch.stack([scale.detach().mean() for scale in scales.values()]).mean()
        log["hidden_norm"] = torch.stack(
            [torch.linalg.vector_norm(h.detach(), dim=1).mean() for h in hidden.sites.values()]
        ).mean()
        return StepLoss(total, log)

    def _scales(self, hidden: Hidden) -> dict[str, Tensor]:
        if self.config.variant == "constant":
            return {name: h.new_full((1, 1), self.config.sigma) for name, h in hidden.sites.items()}
        return {name: self.net_phi[f"at_{name}"](h) for name, h in hidden.sites.items()}

    def _regulariser(self, hidden: Hidden, scales: Mapping[str, Tensor]) -> Tensor:
        config = self.config
        values = []
        for name, h in hidden.sites.items():
            if config.regulariser == "eq13":
                values.append(eq13(h, scales[name], config.prior, phi_is=config.phi_is))
            else:
                values.append(kl_std(h, scales[name], config.prior))
        return add_up(values)

    def _divergence(self, divergence: Divergence, clean: Latent, perturbed: Latent, batch: Batch) -> Tensor:
        if self.config.distil_on == "features":
            # A side that the perturbation does not reach is the same tensor in both passes: its divergence is zero.
            sides = [(clean.items, perturbed.items), (clean.users, perturbed.users)]
            sides += [(value, perturbed.modalities[name]) for name, value in clean.modalities.items()]
            return add_up(divergence(a, b).mean() for a, b in sides if a is not b)
        clean_users, clean_items = self.model.towers(clean)
        noisy_users, noisy_items = self.model.towers(perturbed)
        # Each distinct user once, weighted by its occurrences: the mean over the batch's rows for less work.
        weights = batch.user_weights()

        def block_sum(rows: slice) -> Tensor:
            values = divergence(clean_users[rows] @ clean_items.T, noisy_users[rows] @ noisy_items.T)
            return (values * weights[rows]).sum()

        size = max(1, _SCORE_BLOCK // clean_items.shape[0])
        blocks = [slice(start, start + size) for start in range(0, clean_users.shape[0], size)]
        if len(blocks) == 1:
            return block_sum(blocks[0])
        # More than one block: forget each block's scores and compute them again in the backward pass.
        return add_up(checkpoint(block_sum, rows, use_reentrant=False) for rows in blocks)


def make_objective(model: Recommender, config: DvibConfig, generator: torch.Generator) -> Objective:
    """Return the objective of a configuration: the plain loss for variant ``none``."""
    if config.variant == "none":
        return PlainObjective(model)
    return DvibObjective(model, config, generator)
