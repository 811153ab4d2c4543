"""Triples, steps and an entropy written out, for tests of the objectives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.helpers_training import planted_blocks
from training.common.choices import Variant
from training.dvib.objective import Objective, StepLoss

DATASET = planted_blocks(n_users=12, n_items=40)
STRONG = ("model.regularisation=0.6", "dvib.sigma=0.3", "dvib.gamma_d=0.4", "dvib.gamma_0=0.7", "dvib.gamma_r=0.2")
DVIB: tuple[Variant, ...] = ("constant", "adaptive")


@dataclass(frozen=True)
class Triples:
    users: Tensor
    positives: Tensor
    negatives: Tensor


def draw_triples(n: int = 30) -> Triples:
    generator = torch.Generator().manual_seed(3)
    # Few users, so that they repeat.
    return Triples(*(torch.randint(high, (n,), generator=generator) for high in (5, 40, 40)))


def step(objective: Objective, triples: Triples, seed: int = 11) -> StepLoss:
    batch = objective.batch(triples.users, triples.positives, triples.negatives)
    objective.model.begin_epoch(1, torch.Generator().manual_seed(0))
    return objective.step(batch, torch.Generator().manual_seed(seed))


def gradients(total: Tensor, objective: Objective) -> dict[str, Tensor]:
    names, values = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(total, values, allow_unused=True)
    return {name: torch.zeros(()) if grad is None else grad for name, grad in zip(names, found, strict=True)}


def entropy_term(scores: Tensor) -> Tensor:
    p = scores.softmax(1)
    return (torch.log(torch.tensor(float(scores.shape[1]))) + (p * p.log()).sum(1)).mean()
