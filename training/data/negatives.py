"""Uniform negative sampling without Python loops."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 32
"""Rounds of rejection before the complement is written out; each round leaves the share of items the user owns."""


class NegativeSampler:
    """Draws items that a user has not interacted with, uniformly over the items that occur in training.

    Users who own every training item have no negative; ``usable`` leaves their interactions out.

    Args:
        users: int64 [E], users of the training interactions.
        items: int64 [E], items of the training interactions.
        n_items: Number of items, I.
    """

    def __init__(self, users: Tensor, items: Tensor, n_items: int) -> None:
        self._n_items = n_items
        self._keys = torch.unique(users * n_items + items)  # sorted
        self._candidates = torch.unique(items)
        owned = torch.bincount(self._keys // n_items, minlength=int(users.max()) + 1)
        self.usable = owned[users] < len(self._candidates)
        """bool [E], interactions whose user has at least one negative."""

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one negative for each user.

        Args:
            users: int64 [n], each with at least one negative.
            generator: On the device of ``users``.

        Returns:
            int64 [n], item rows.
        """
        negatives = self._propose(len(users), generator)
        pending = self._owned(users, negatives).nonzero().squeeze(1)
        for _ in range(_ROUNDS):
            if len(pending) == 0:
                return negatives
            proposal = self._propose(len(pending), generator)
            negatives[pending] = proposal
            pending = pending[self._owned(users[pending], proposal)]
        for position in pending.tolist():
            left = self._candidates[~self._owned(users[position].expand_as(self._candidates), self._candidates)]
            choice = torch.randint(len(left), (), generator=generator, device=left.device)
            negatives[position] = left[choice]
        return negatives

    def _propose(self, count: int, generator: torch.Generator) -> Tensor:
        device = self._candidates.device
        rows = torch.randint(len(self._candidates), (count,), generator=generator, device=device)
        return torch.index_select(self._candidates, 0, rows)

    def _owned(self, users: Tensor, items: Tensor) -> Tensor:
        keys = users * self._n_items + items
        position = torch.searchsorted(self._keys, keys).clamp_max_(len(self._keys) - 1)
        return torch.eq(self._keys[position], keys)
