"""What the self-distillation compares: features of the representations, or each user's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.dvib.config import DvibConfig
from training.dvib.divergence import jensen_shannon, kl_forward, kl_reverse, ref_entropy
from training.models.base import Batch, Latent, Rows

Divergence = Callable[[Tensor, Tensor], Tensor]
Towers = tuple[Tensor, Tensor]
"""User vectors [n_u, D] and item vectors [n, D] of one pass."""

DIVERGENCES: dict[str, Divergence] = {
    "js": jensen_shannon,
    "kl_forward": kl_forward,
    "kl_reverse": kl_reverse,
    "ref_entropy": ref_entropy,
}
LOGGED_USERS = 64
"""Where only the log wants a divergence of scores, it is that of at most so many of a batch's users."""
_SCORE_BLOCK = 16_000_000
"""Scores of one pass held at once while distilling over all items; about half a gigabyte with all temporaries."""


def add_up(values: Iterable[Tensor]) -> Tensor:
    """Add scalars one by one: stacking them first would cost several more operations each way."""
    return reduce(torch.add, values)


def distil(
    config: DvibConfig,
    clean: Latent,
    perturbed: Latent,
    towers: Callable[[Latent], Towers],
    user_weights: Callable[[], Tensor],
) -> tuple[Tensor, Tensor] | None:
    """Compare two passes.

    Args:
        config: Says which divergence, and on what.
        clean: Z.
        perturbed: Zδ.
        towers: Vectors of users and candidate items.
        user_weights: Share of each user in the batch, float32 [n_u].

    Returns:
        The configured divergence and, for the log, the Jensen–Shannon divergence: the sum of the means over the rows of
        everything that is compared, or with scores the mean over the batch (over ``LOGGED_USERS`` of its users, where
        only the log wants it). None where the perturbation reaches nothing of that: what it does not reach is the same
        tensor in both passes.
    """
    divergence = DIVERGENCES[config.divergence]
    sides = [(clean.items, perturbed.items), (clean.users, perturbed.users)]
    on_scores = config.distil_on == "scores"
    if not on_scores:
        sides += [(value, perturbed.modalities[name]) for name, value in clean.modalities.items()]
    reached = [(left, right) for left, right in sides if left is not right]
    if not reached:
        return None
    if on_scores:
        passes, weights = (towers(clean), towers(perturbed)), user_weights()
        few = some_users(passes, weights, LOGGED_USERS)
        value = over_scores(divergence, *((passes, weights) if config.gamma_d else few))
    else:
        value = add_up(divergence(left, right).mean() for left, right in reached)
    if config.divergence == "js":
        return value, value
    with torch.no_grad():
        if on_scores:
            return value, over_scores(jensen_shannon, *few)
        return value, add_up(jensen_shannon(left, right).mean() for left, right in reached)


def over_scores(function: Callable[..., Tensor], passes: tuple[Towers, ...], weights: Tensor) -> Tensor:
    """Weighted sum over users of a function of their scores, a block of users at a time.

    Args:
        function: Scores [b, n] of each pass → float32 [b].
        passes: The towers of one pass or more, of the same users and items.
        weights: float32 [n_u].

    Returns:
        A scalar.
    """

    def block_sum(rows: slice) -> Tensor:
        return (function(*(users[rows] @ items.T for users, items in passes)) * weights[rows]).sum()

    users, items = passes[0]
    size = max(1, _SCORE_BLOCK // items.shape[0])
    blocks = [slice(start, start + size) for start in range(0, users.shape[0], size)]
    if len(blocks) == 1:
        return block_sum(blocks[0])
    # More than one block: forget each block's scores and compute them again in the backward pass.
    return add_up(checkpoint(block_sum, rows, use_reentrant=False) for rows in blocks)


def some_users(passes: tuple[Towers, ...], weights: Tensor, most: int) -> tuple[tuple[Towers, ...], Tensor]:
    """Keep at most so many users, evenly from all of them; their weights sum to one again."""
    step = -(-len(weights) // most)
    kept = weights[::step]
    return tuple((users[::step], items) for users, items in passes), kept / kept.sum()


def with_sampled_items(batch: Batch, pool: Tensor, count: int, generator: torch.Generator) -> Batch:
    """Add items to the rows of a batch, whose triples stay the same.

    Args:
        batch: Over some items, ``rows.items`` is not None.
        pool: int64 [n], the items that are drawn from, uniformly and with replacement; what was drawn twice, or is
            there already, is there once.
        count: How many are drawn.
        generator: On the batch's device.
    """
    rows = batch.rows.items
    if rows is None:
        return batch
    drawn = pool[torch.randint(len(pool), (count,), generator=generator, device=pool.device)]
    items, places = torch.unique(torch.cat([rows, drawn]), return_inverse=True)
    return Batch(Rows(batch.rows.users, items), batch.users, places[batch.positives], places[batch.negatives])
