"""What each summand of the loss is worth: the norm of its gradient beside that of L0's.

A term may be in the sum with a weight and still teach nothing: the true Jensen–Shannon divergence under the paper's σ
is some 1e-7. Its value alone does not tell (a constant has a value too); its gradient does.

Measured on the graph of a step that training makes anyway, before that step's own backward pass: nothing is drawn,
nothing is computed twice, and the training takes the same course as without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.dvib.objective import Part, StepLoss

WORTH = "worth/"
"""Before a part's name in the log: the norm of its gradient, weighted, over that of L0's."""
L0_NORM = "gradient/l0"


FIRST_EPOCHS = 5
"""Measured one and all: what is dead from the start is known by then."""


def is_measured(epoch: int, every: int) -> bool:
    """Whether an epoch, from 1, is one that measures what terms are worth; ``every`` is ``training.watch_every``."""
    return every > 0 and (epoch <= FIRST_EPOCHS or (epoch - FIRST_EPOCHS) % every == 0)


def worth_of_parts(step: StepLoss, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Measure every weighted part of a step's loss.

    L0 stands for what the clean pass adds to the total, weight decay included. Where it adds nothing
    (``dvib.gamma_l0=0``), L0 of the perturbed pass takes its place.

    Args:
        step: Before its backward pass; afterwards the graph is still there.
        parameters: Whose gradients count, all of them together.

    Returns:
        ``gradient/l0`` and ``worth/NAME`` for every part whose weight is not zero, each a scalar on the device. Without
        an L0, nothing.
    """
    weighted = {name: part for name, part in step.parts.items() if part.weight}
    reference: list[Tensor | None] = [None] * len(parameters)
    of_l0 = [name for name, part in weighted.items() if part.of_l0] or ["general_perturbed"]
    norms: dict[str, Tensor] = {}
    for name, part in weighted.items():
        gradients = part_gradients(part, parameters)
        norms[name] = norm_of(gradients, step.total)
        if name in of_l0:
            reference = [_sum(have, more) for have, more in zip(reference, gradients, strict=True)]
    if not any(name in norms for name in of_l0):
        return {}
    l0 = norm_of(reference, step.total)
    return {L0_NORM: l0, **{f"{WORTH}{name}": norm / l0 for name, norm in norms.items()}}


def part_gradients(part: Part, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Return the gradient of a part, weighted, by each parameter; None where it does not depend on it."""
    if not part.value.requires_grad:
        return [None] * len(parameters)
    found = torch.autograd.grad(part.value, parameters, retain_graph=True, allow_unused=True)
    return [None if gradient is None else gradient * part.weight for gradient in found]


def norm_of(gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Return the norm of all gradients as one vector: a scalar, zero where there are none."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients if g is not None]
    if not dense:
        return torch.zeros_like(like)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(dense)))
    return norm


def _sum(have: Tensor | None, more: Tensor | None) -> Tensor | None:
    if have is None or more is None:
        return more if have is None else have
    return more + have if have.is_sparse and not more.is_sparse else have + more


def state_of(step: StepLoss) -> dict[str, Tensor]:
    """Return the mean norm of H's rows, and the mean and spread of φ over all rows of all sites, by log name."""
    with torch.no_grad():
        found = {"watch/hidden_norm": _mean_norm(step.sites)} if step.sites else {}
        learned = [scale.detach().flatten() for scale in step.scales.values() if scale.requires_grad]
        if learned:
            phi = torch.cat(learned)
            found |= {
                "watch/phi_mean": phi.mean(),
                "watch/phi_sd": phi.std(correction=0),
                "watch/phi_min": phi.min(),
                "watch/phi_max": phi.max(),
            }
    return found


def _mean_norm(sites: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(h.detach(), dim=1).mean() for h in sites.values()]).mean()
