"""Full-ranking evaluation: every item is ranked for every user, training items left out.

Protocol (MMRec's, which the paper uses): users of a split without a training interaction are left out; training
positives are masked, validation positives are not; items that never occur in training are ranked like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.common.errors import ConfigError, DataError
from training.data.dataset import Dataset, Interactions, Split
from training.models.base import Recommender

DEFAULT_KS = (5, 10, 20, 50)
METRICS = ("recall", "ndcg", "precision", "map", "hr")
_BLOCK_SCORES = 2_000_000
"""Scores ranked at once: 8 MB, so that a block stays in the processor's cache between its passes."""


@dataclass(frozen=True)
class GroupedItems:
    """Items grouped by user: user ``u`` has ``items[offsets[u]:offsets[u + 1]]``, ascending.

    Attributes:
        offsets: int64 [U + 1].
        items: int64 [n].
    """

    offsets: Tensor
    items: Tensor

    @classmethod
    def of(cls, interactions: Interactions, n_users: int) -> GroupedItems:
        """Group distinct interactions by user."""
        pairs = np.unique(np.stack([interactions.users, interactions.items]), axis=1)
        offsets = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(pairs[0], minlength=n_users), out=offsets[1:])
        return cls(torch.from_numpy(offsets), torch.from_numpy(np.ascontiguousarray(pairs[1])))

    def to(self, device: torch.device) -> GroupedItems:
        """Return a copy on a device."""
        return GroupedItems(self.offsets.to(device), self.items.to(device))

    def cells(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (position in ``users``, item) pairs of the given users, both int64."""
        counts = self.offsets[users + 1] - self.offsets[users]
        positions = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
        starts = self.offsets[users] - torch.cumsum(counts, 0) + counts
        within = torch.arange(len(positions), device=users.device) + starts[positions]
        return positions, self.items[within]


@dataclass(frozen=True)
class EvaluationSet:
    """One split, prepared for ranking.

    Attributes:
        users: int64 [n], the users that are evaluated.
        truth: The split's items of every user.
        seen: The training items of every user.
    """

    users: Tensor
    truth: GroupedItems
    seen: GroupedItems

    @classmethod
    def of(cls, dataset: Dataset, split: Split, device: torch.device | None = None) -> EvaluationSet:
        """Prepare a split.

        Raises:
            DataError: No user of the split has a training interaction.
        """
        target = device or torch.device("cpu")
        truth = GroupedItems.of(dataset.splits[split], dataset.n_users).to(target)
        seen = GroupedItems.of(dataset.train, dataset.n_users).to(target)
        users = ((truth.offsets.diff() > 0) & (seen.offsets.diff() > 0)).nonzero().squeeze(1)
        if len(users) == 0:
            raise DataError(f"{dataset.name}: no user of the {split} split has a training interaction to rank from")
        return cls(users, truth, seen)


Scorer = Callable[[Tensor], Tensor]
"""User rows int64 [b] → scores float32 [b, I], a fresh tensor that may be overwritten."""


def top_k(scorer: Scorer, data: EvaluationSet, n_items: int, k: int) -> tuple[Tensor, Tensor]:
    """Rank all items for the users of a split.

    Args:
        scorer: Gives the scores of a block of users.
        data: The split.
        n_items: Number of items, I.
        k: Length of the lists; at most I.

    Returns:
        Items int64 [n, k], best first, and hits bool [n, k]. Where a user has fewer than k unseen items the list ends
        with seen ones, which are never hits.
    """
    lists, hits = [], []
    for users in torch.split(data.users, max(1, _BLOCK_SCORES // n_items)):
        scores = scorer(users)
        scores[data.seen.cells(users)] = -torch.inf
        values, items = scores.topk(k, dim=1)
        relevant = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        relevant[data.truth.cells(users)] = True
        lists.append(items)
        hits.append(relevant.gather(1, items) & (values > -torch.inf))
    return torch.cat(lists), torch.cat(hits)


def metrics_per_user(hits: Tensor, relevant: Tensor, ks: Sequence[int] = DEFAULT_KS) -> dict[str, Tensor]:
    """Compute ranking metrics from the hits of each user's list.

    With h_j the hit at rank j and G the number of relevant items: recall@k = Σh/G, precision@k = Σh/k, hr@k = 1 if any
    hit, ndcg@k = Σ h_j/log2(j+1) over its value for min(k, G) leading hits, map@k = Σ h_j·(hits up to j)/j over
    min(k, G), sums over j ≤ k.

    Args:
        hits: bool [n, K].
        relevant: int64 [n], G ≥ 1.
        ks: Cut-offs, each at most K.

    Returns:
        ``"recall@5"`` and so on → float64 [n].
    """
    h = hits.double()
    ranks = torch.arange(1, h.shape[1] + 1, dtype=torch.float64, device=h.device)
    discount = 1.0 / torch.log2(ranks + 1)
    found = h.cumsum(1)
    gain = (h * discount).cumsum(1)
    ideal = discount.cumsum(0)
    precision_sum = (h * found / ranks).cumsum(1)
    result: dict[str, Tensor] = {}
    for k in ks:
        best = relevant.clamp_max(k)
        result[f"recall@{k}"] = found[:, k - 1] / relevant
        result[f"ndcg@{k}"] = gain[:, k - 1] / ideal[best - 1]
        result[f"precision@{k}"] = found[:, k - 1] / k
        result[f"map@{k}"] = precision_sum[:, k - 1] / best
        result[f"hr@{k}"] = (found[:, k - 1] > 0).double()
    return result


Onlooker = Callable[[Tensor], object]
"""Is shown a ranking's lists, int64 [n, K]."""


def evaluate_users(
    scorer: Scorer,
    data: EvaluationSet,
    n_items: int,
    ks: Sequence[int] = DEFAULT_KS,
    on_lists: Onlooker | None = None,
) -> dict[str, Tensor]:
    """Compute every metric at every cut-off for each user of a split (cut-offs beyond the catalogue are left out).

    Args:
        scorer: Gives the scores of a block of users.
        data: The split.
        n_items: Number of items, I.
        ks: Cut-offs.
        on_lists: Is shown the lists, as long as the largest cut-off.

    Returns:
        ``"recall@5"`` and so on → float64 [n], in the order of ``data.users``.

    Raises:
        ConfigError: Every cut-off is beyond the catalogue.
    """
    usable = [k for k in ks if k <= n_items]
    if not usable:
        raise ConfigError(f"every cut-off of {list(ks)} exceeds the catalogue of {n_items} items")
    lists, hits = top_k(scorer, data, n_items, max(usable))
    if on_lists is not None:
        on_lists(lists)
    relevant = data.truth.offsets.diff()[data.users]
    return metrics_per_user(hits, relevant, usable)


def evaluate(
    scorer: Scorer,
    data: EvaluationSet,
    n_items: int,
    ks: Sequence[int] = DEFAULT_KS,
    on_lists: Onlooker | None = None,
) -> dict[str, float]:
    """Return the mean over users of every metric at every cut-off (cut-offs beyond the catalogue are left out)."""
    return {name: float(values.mean()) for name, values in evaluate_users(scorer, data, n_items, ks, on_lists).items()}


def vector_scorer(users: Tensor, items: Tensor) -> Scorer:
    """Score by inner product of user vectors [U, D] and item vectors [I, D]."""
    transposed = items.T
    return lambda rows: users.index_select(0, rows) @ transposed


def popularity_scorer(dataset: Dataset, device: torch.device | None = None) -> Scorer:
    """Score every item by its training interactions; ties go to the earlier row."""
    counts = torch.from_numpy(dataset.popularity())
    order = torch.argsort(counts, descending=True, stable=True)
    places = torch.empty(dataset.n_items, dtype=torch.float32)
    places[order] = -torch.arange(dataset.n_items, dtype=torch.float32)
    places = places.to(device or torch.device("cpu"))
    return lambda rows: places.expand(len(rows), -1).clone()


@torch.no_grad()
def evaluate_model(
    model: Recommender, data: EvaluationSet, n_items: int, ks: tuple[int, ...], on_lists: Onlooker | None = None
) -> dict[str, float]:
    """Evaluate a model on one split; every vector is computed once."""
    users, items = model.vectors()
    return evaluate(vector_scorer(users, items), data, n_items, ks, on_lists)
