"""AMR: the task's loss once more, on features that an adversary has moved.

Tang, Du, He, Yuan, Tian and Chua, "Adversarial Training Towards Robust Multimedia Recommender System", IEEE TKDE 32(5),
2019 (there for VBPR and images). With m_i the features of item i and L the task's loss without weight decay:

    Δ_i   = ε g_i / ‖g_i‖,  g_i = ∂L/∂m_i          the fast gradient method, per item row of the batch
    total = L0 [and the DVIB terms] + λ L(m + Δ)    Δ a constant

m is what the model sees: after ``data.feature_scaling``. ε is a length in these units, not a share of ‖m_i‖. Where
several modalities are moved, they are one vector, and ‖g_i‖ its norm. An item whose gradient is zero stays where it is.
Weight decay is counted once, with L0.

Defaults: ε = 0.1 and λ = 1 are those of the run that the authors publish (their ``run.sh``). They start from a trained
VBPR, which a longer training makes up for here; their code lets the gradient flow through Δ, against the paper's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from training.common.errors import ConfigError, nearest
from training.models.base import Batch
from training.passes import Passes
from training.robust.config import RobustConfig

_TINY = 1e-30


class Adversary:
    """Moves the features of a batch's items to where the task's loss is worse.

    Args:
        config: Its weight, its reach, and what it moves.
        widths: Modality name → feature width.

    Raises:
        ConfigError: ``amr_modalities`` names one that the data set does not have.
    """

    def __init__(self, config: RobustConfig, widths: Mapping[str, int]) -> None:
        self.weight = config.amr_weight
        self.epsilon = config.amr_epsilon
        wanted = config.amr_modalities or (("image",) if "image" in widths else tuple(widths))
        for name in wanted:
            if name not in widths:
                raise ConfigError(
                    f"robust.amr_modalities: the data set has no modality '{name}'{nearest(name, widths)}"
                )
        self.widths = {name: widths[name] for name in wanted}

    def loss(self, passes: Passes, batch: Batch) -> Tensor:
        """Return L(m + Δ), a scalar with a graph; its own passes cover the batch's items and no others.

        Args:
            passes: Run a model that heeds ``Rows.shift``.
            batch: In training.
        """
        batch = batch.of_its_items()
        return self._task(passes, batch, self.shift(passes, batch))

    def shift(self, passes: Passes, batch: Batch) -> dict[str, Tensor]:
        """Return Δ: modality → float32 [n_i, F_m], constant. Arguments as for ``loss``."""
        if batch.rows.items is None:
            raise ValueError("the batch names no items; take batch.of_its_items()")
        device = batch.users.device
        with torch.enable_grad():
            still = {
                name: torch.zeros(len(batch.rows.items), width, device=device, requires_grad=True)
                for name, width in self.widths.items()
            }
            # The sum over the batch in place of its mean: the same direction, and no underflow in half precision.
            task = len(batch.users) * self._task(passes, batch, still)
            gradients = torch.autograd.grad(task, list(still.values()))
        # In two steps, so that squares of small gradients do not underflow.
        largest = torch.stack([gradient.abs().amax(dim=1) for gradient in gradients]).amax(dim=0).clamp_min(_TINY)
        scaled = [gradient / largest[:, None] for gradient in gradients]
        norms = torch.linalg.vector_norm(torch.cat(scaled, dim=1), dim=1, keepdim=True)
        return {
            name: self.epsilon * gradient / norms.clamp_min(_TINY) for name, gradient in zip(still, scaled, strict=True)
        }

    def _task(self, passes: Passes, batch: Batch, shift: Mapping[str, Tensor]) -> Tensor:
        latent = passes.represent(passes.hidden(replace(batch.rows, shift=shift)))
        return torch.stack(list(passes.model.loss(latent, batch).values())).sum()
