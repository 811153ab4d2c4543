"""Objectives: how a model's own loss becomes the loss of a training step.

``PlainObjective`` is the model's loss. ``DvibObjective`` wraps any model with the second pass of the paper's
Algorithm 1. The model inside is the same class with the same tensors, so taking ``objective.model`` *is* the stripping.
Either may be given an adversary, whose loss joins the total.

A term of weight zero is still computed where the log shows it, but without a graph: it costs no backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from training.common.errors import ConfigError, nearest
from training.dvib.config import DvibConfig
from training.dvib.distillation import Towers, add_up, distil, over_scores, with_sampled_items
from training.dvib.divergence import missing_entropy
from training.dvib.perturbation import NetPhi, perturb
from training.dvib.regulariser import eq13, kl_std
from training.models.base import Batch, Hidden, Latent, Recommender
from training.passes import Passes
from training.robust.amr import Adversary

DECAY = "decay"
"""The term of L0 that is the model's weight decay."""


@dataclass(frozen=True)
class Part:
    """One summand of a step's loss.

    Attributes:
        weight: What multiplies it in the total.
        value: Scalar, with a graph where the weight is not zero.
        of_l0: Whether it belongs to L0, the loss of the clean pass.
    """

    weight: float
    value: Tensor
    of_l0: bool = False


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step.

    Attributes:
        total: Scalar with a graph, to be minimised.
        terms: Detached scalars for the log: the model's terms as the model weighs them, the others without weights.
        parts: What the total is the weighted sum of, by name, for whoever wants to know what each is worth.
        sites: The clean pass's H, as the model gave it.
        scales: σ or φ of each site; empty without DVIB.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    parts: Mapping[str, Part] = field(default_factory=dict)
    sites: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """A model together with the loss it is trained by.

    Args:
        model: Any recommender.
        config: Which of its settings apply, the variant says.
        training_items: int64 [n], the items that occur in training.

    Attributes:
        adversary: Whose loss is added to every step's, or None.
        passes: How the model's f1 and f2 are run.
    """

    def __init__(self, model: Recommender, config: DvibConfig, training_items: Tensor) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.adversary: Adversary | None = None
        self.passes = Passes(model)
        self.register_buffer("training_items", training_items, persistent=False)
        self.training_items: Tensor

    def batch(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Arrange triples of rows (int64 [B] each) for this objective."""
        return Batch.of(users, positives, negatives)

    def step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute the loss of one batch.

        Args:
            batch: From ``self.batch``.
            noise: Generator of perturbation and sampled candidates, on the model's device; nothing else draws from it.
        """
        result = self.own_step(batch, noise)
        if self.adversary is None:
            return result
        adversarial = self.adversary.loss(self.passes, batch)
        total = result.total + self.adversary.weight * adversarial
        return replace(
            result,
            total=total,
            terms={**result.terms, "adversarial": adversarial.detach()},
            parts={**result.parts, "adversarial": Part(self.adversary.weight, adversarial)},
        )

    def own_step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute the loss of one batch but for the adversary's. Arguments as for ``step``."""
        raise NotImplementedError

    def general(self, latent: Latent, batch: Batch, *, decay: bool = True) -> dict[str, Tensor]:
        """Return the terms of L0, with the model's weight decay among them unless told otherwise."""
        terms = self.model.loss(latent, batch)
        penalty = self.model.decay(latent, batch) if decay else None
        return terms if penalty is None else {**terms, DECAY: penalty}

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that exist for training only, by name."""
        return {name: value for name, value in self.named_parameters() if not name.startswith("model.")}

    def with_candidates(self, batch: Batch, noise: torch.Generator) -> Batch:
        """Add the sampled candidates that the configuration asks for."""
        if not self.config.sampled_items:
            return batch
        return with_sampled_items(batch, self.training_items, self.config.sampled_items, noise)

    def candidates(self, latent: Latent, batch: Batch) -> Towers:
        """Return the vectors of the batch's users and of the items whose scores are distilled."""
        users, items = self.model.towers(latent)
        # The rows of a batch, and what is drawn to join them, occur in training anyway.
        if batch.rows.items is None and self.config.candidates == "training" and len(self.training_items) < len(items):
            items = items.index_select(0, self.training_items)
        return users, items

    def entropy(self, latent: Latent, batch: Batch) -> Tensor:
        """Return the mean over the batch's rows of what their users' score distributions lack of equality."""
        # Each distinct user once, weighted by its occurrences: the mean over the batch's rows for less work.
        return over_scores(missing_entropy, (self.candidates(latent, batch),), batch.user_weights())


class PlainObjective(Objective):
    """The model's own loss, L0, and the entropy of its scores where that is asked for."""

    def batch(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Arrange triples; what candidates there are matters to the entropy only."""
        everything = self.config.entropy > 0 and self.config.rows == "all"
        return Batch.of(users, positives, negatives, all_items=everything)

    def own_step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute L0; draws no noise."""
        weight = self.config.entropy
        if weight:
            batch = self.with_candidates(batch, noise)
        hidden = self.passes.hidden(batch.rows)
        latent = self.passes.represent(hidden)
        terms = self.general(latent, batch)
        parts = {name: Part(1.0, value, of_l0=True) for name, value in terms.items()}
        total = add_up(terms.values())
        if weight:
            terms = {**terms, "entropy": self.entropy(latent, batch)}
            total = total + weight * terms["entropy"]
            parts["entropy"] = Part(weight, terms["entropy"])
        return StepLoss(total, {name: value.detach() for name, value in terms.items()}, parts, hidden.sites)


def _graph_if(weight: float) -> AbstractContextManager[object]:
    return nullcontext() if weight else torch.no_grad()


class DvibObjective(Objective):
    """L0 and the DVIB terms (paper, Eq. 7–14 and Algorithm 1).

    Args:
        model: Any recommender.
        config: Variant ``constant`` or ``adaptive``.
        training_items: int64 [n], the items that occur in training.
        generator: CPU generator for Net_φ's initial weights.
    """

    def __init__(
        self, model: Recommender, config: DvibConfig, training_items: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__(model, config, training_items)
        self.net_phi = nn.ModuleDict()
        if config.variant == "adaptive":
            for name, width in model.site_widths.items():
                if self._net_of(name) not in self.net_phi:
                    self.net_phi[self._net_of(name)] = NetPhi(width, config.net_phi_hidden, generator)

    def _net_of(self, site: str) -> str:
        # Prefixed, because a ModuleDict takes no key that is the name of one of its methods.
        if self.config.net_phi == "shared":
            return f"width_{self.model.site_widths[site]}"
        return f"at_{site}"

    def batch(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Batch:
        """Arrange triples for the rows that this configuration covers."""
        return Batch.of(users, positives, negatives, all_items=self.config.rows == "all")

    def own_step(self, batch: Batch, noise: torch.Generator) -> StepLoss:
        """Compute the total loss of Eq. 8 (or its convex form)."""
        config = self.config
        batch = self.with_candidates(batch, noise)
        hidden = self.passes.hidden(batch.rows)
        latent = self.passes.represent(hidden)
        clean = self.general(latent, batch)
        general = add_up(clean.values())
        scales = self.scales(hidden)
        with _graph_if(config.gamma_0 + config.gamma_d):
            noisy_sites = {name: perturb(h, scales[name], noise, config.noise) for name, h in hidden.sites.items()}
            noisy_latent = self.passes.represent(replace(hidden, sites=noisy_sites))
        with _graph_if(config.gamma_0):
            general_noisy = self._general_perturbed(noisy_latent, batch)
        with _graph_if(config.gamma_d):
            distillation, js = self._distillation(latent, noisy_latent, batch)
        keep = 1.0 - config.gamma_d if config.mix == "convex" else 1.0
        total = keep * (self._weighed(clean, general) + config.gamma_0 * general_noisy) + config.gamma_d * distillation
        parts = {name: Part(keep * self._weight_of(name), value, of_l0=True) for name, value in clean.items()}
        parts["general_perturbed"] = Part(keep * config.gamma_0, general_noisy)
        parts["distillation"] = Part(config.gamma_d, distillation)
        log = {**clean, "general": general, "general_perturbed": general_noisy, "distillation": distillation, "js": js}
        if config.entropy:
            log["entropy"] = self.entropy(latent, batch)
            total = total + config.entropy * log["entropy"]
            parts["entropy"] = Part(config.entropy, log["entropy"])
        if config.variant == "adaptive":
            with _graph_if(config.gamma_r):
                log["variational"] = self._regulariser(hidden, scales)
            total = total + config.gamma_r * log["variational"]
            parts["variational"] = Part(config.gamma_r, log["variational"])
            log["phi_mean"] = torch.stack([scale.detach().mean() for scale in scales.values()]).mean()
        log["hidden_norm"] = torch.stack(
            [torch.linalg.vector_norm(h.detach(), dim=1).mean() for h in hidden.sites.values()]
        ).mean()
        return StepLoss(total, {name: value.detach() for name, value in log.items()}, parts, hidden.sites, scales)

    def _weight_of(self, clean_term: str) -> float:
        return 1.0 if clean_term == DECAY else self.config.gamma_l0

    def _weighed(self, clean: Mapping[str, Tensor], general: Tensor) -> Tensor:
        """Return what the clean pass adds to the total: its terms by ``gamma_l0``, and the weight decay as it is."""
        weight = self.config.gamma_l0
        if weight == 1:
            return general
        counted = [
            value if name == DECAY else weight * value for name, value in clean.items() if weight or name == DECAY
        ]
        return add_up(counted) if counted else torch.zeros_like(general)

    def scales(self, hidden: Hidden) -> dict[str, Tensor]:
        """Return each site's noise scale: σ as float32 [1, 1], or φ as float32 [rows, 1]."""
        if self.config.variant == "constant":
            return {name: h.new_full((1, 1), self.config.sigma) for name, h in hidden.sites.items()}
        scales: dict[str, Tensor] = {}
        for key, net in self.net_phi.items():
            # Sites that share a net go through it together: the cost of its many small steps is paid once.
            names = [name for name in hidden.sites if self._net_of(name) == key]
            rows = [hidden.sites[name] for name in names]
            phi = net(torch.cat(rows) if len(rows) > 1 else rows[0])
            scales.update(zip(names, phi.split([len(site) for site in rows]), strict=True))
        return scales

    def _general_perturbed(self, latent: Latent, batch: Batch) -> Tensor:
        terms = self.general(latent, batch, decay=False)
        wanted = self.config.perturbed_terms
        for name in wanted or ():
            if name not in terms:
                raise ConfigError(f"dvib.perturbed_terms: the model has no loss term '{name}'{nearest(name, terms)}")
        counted = [value for name, value in terms.items() if wanted is None or name in wanted]
        penalty = self.model.decay(latent, batch) if self.config.decay_both else None
        return add_up(counted if penalty is None else [*counted, penalty])

    def _regulariser(self, hidden: Hidden, scales: Mapping[str, Tensor]) -> Tensor:
        config = self.config
        values = []
        for name, h in hidden.sites.items():
            if config.regulariser == "eq13":
                values.append(eq13(h, scales[name], config.prior, phi_is=config.phi_is))
            else:
                values.append(kl_std(h, scales[name], config.prior))
        return add_up(values)

    def _distillation(self, clean: Latent, perturbed: Latent, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the configured divergence of the two passes, and the true one for the log."""
        config = self.config
        found = distil(config, clean, perturbed, lambda latent: self.candidates(latent, batch), batch.user_weights)
        if found is None and config.gamma_d:
            raise ConfigError(
                f"the perturbation (of {', '.join(self.model.site_widths)}) reaches nothing that "
                f"dvib.distil_on={config.distil_on} compares; choose another dvib.distil_on or model.inject_at, "
                "or dvib.gamma_d=0"
            )
        zero = clean.items.new_zeros(())
        return found or (zero, zero)


def make_objective(
    model: Recommender, config: DvibConfig, generator: torch.Generator, training_items: Tensor
) -> Objective:
    """Return the objective of a configuration: the model's own loss for variant ``none``.

    Args:
        model: Any recommender.
        config: The objective around it.
        generator: CPU generator for initial values.
        training_items: int64 [n], the distinct items that occur in training.
    """
    if config.variant == "none":
        return PlainObjective(model, config, training_items)
    return DvibObjective(model, config, training_items, generator)
