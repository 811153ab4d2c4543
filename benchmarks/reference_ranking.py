"""Full ranking as it is often written: the other side of the ranking benchmark.

Our own code. The mathematics is that of ``training.evaluation``; what differs is how the work is done: item vectors are
projected anew for every batch of 4096 users, hits are looked up one by one with ``in`` on the arrays that a grouped
table gives (as the MMRec toolbox's evaluator does), and metrics are computed user by user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.reference_loops import PlainVBPR
from training.data.dataset import Dataset, Split

_BATCH = 4096
"""Users ranked at once."""


def items_by_user(dataset: Dataset, split: Split) -> list[NDArray[np.int64]]:
    """Return every user's items of a split, int64 each."""
    part = dataset.splits[split]
    order = np.argsort(part.users, kind="stable")
    ends = np.cumsum(np.bincount(part.users, minlength=dataset.n_users))
    return np.split(part.items[order], ends[:-1])


class PlainRanking:
    """Ranks all items for the users of one split.

    Args:
        model: Gives the scores.
        dataset: Has the interactions; they are grouped here, once, as ``EvaluationSet`` is.
        split: The items to be found.
    """

    def __init__(self, model: PlainVBPR, dataset: Dataset, split: Split) -> None:
        self._model = model
        seen, truth = items_by_user(dataset, "train"), items_by_user(dataset, split)
        users = [user for user in range(dataset.n_users) if len(truth[user]) and len(seen[user])]
        self._truth = [truth[user] for user in users]
        self._batches: list[tuple[Tensor, Tensor]] = []  # users [b] and the cells (row, item) they have seen [n, 2]
        for start in range(0, len(users), _BATCH):
            batch = users[start : start + _BATCH]
            pairs: list[tuple[int, int]] = []
            for row, user in enumerate(batch):
                pairs.extend((row, item) for item in seen[user].tolist())
            self._batches.append((torch.tensor(batch), torch.tensor(pairs)))

    @torch.no_grad()
    def lists(self, k: int) -> NDArray[np.int64]:
        """Return each user's k best unseen items, best first, int64 [n, k]."""
        ranked = []
        for users, cells in self._batches:
            scores = self._model.users[users] @ self._model.item_vectors().T  # [b, I]
            scores[cells[:, 0], cells[:, 1]] = -math.inf
            ranked.append(torch.topk(scores, k, dim=1).indices)
        lists: NDArray[np.int64] = torch.cat(ranked).numpy()
        return lists

    def evaluate(self, ks: Sequence[int]) -> dict[str, float]:
        """Return the mean over users of every metric at every cut-off: ``"recall@20"`` and so on."""
        sums: dict[str, float] = {}
        for truth, ranked in zip(self._truth, self.lists(max(ks)), strict=True):
            hits = [item in truth for item in ranked]
            for k in ks:
                for name, value in _metrics(hits[:k], k, len(truth)).items():
                    sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + value
        return {name: value / len(self._truth) for name, value in sums.items()}


def _metrics(hits: list[bool], k: int, relevant: int) -> dict[str, float]:
    found, gain, precisions = 0, 0.0, 0.0
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            gain += 1 / math.log2(rank + 1)
            precisions += found / rank
    best = min(k, relevant)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return {
        "recall": found / relevant,
        "ndcg": gain / ideal,
        "precision": found / k,
        "map": precisions / best,
        "hr": float(found > 0),
    }
