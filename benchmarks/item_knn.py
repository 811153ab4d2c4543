"""Item-kNN: the neighbourhood ranking that every learned model should be measured against.

Sarwar, Karypis, Konstan and Riedl, "Item-based collaborative filtering recommendation algorithms", WWW 2001, on
implicit feedback, without shrinkage:

    s_ij = |users of i and j| / √(|users of i| · |users of j|),  s_ii = 0
    w_ij = s_ij if i is one of the k items most similar to j, else 0        (ties: the earlier row)
    score(u, j) = Σ_{i in the training items of u} w_ij
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from training.data.dataset import Dataset
from training.evaluation import EvaluationSet, Scorer, evaluate

NEIGHBOURS = (10, 20, 50, 100, 200)
"""The k that are tried."""
_ROWS = 2048
"""Items whose similarities are held at once."""


def interaction_matrix(dataset: Dataset) -> sparse.csr_array:
    """Return the training interactions as a matrix of ones, float64 [U, I]."""
    train = dataset.train
    shape = (dataset.n_users, dataset.n_items)
    matrix = sparse.csr_array((np.ones(len(train)), (train.users, train.items)), shape=shape)
    matrix.data[:] = 1.0  # a pair that occurs twice has been added up
    return matrix


def neighbours(interactions: sparse.csr_array, k: int) -> sparse.csr_array:
    """Return the weights w, transposed: row j holds the at most k positive similarities of item j, float64 [I, I]."""
    degree = np.asarray(interactions.sum(axis=0)).ravel()
    scale = np.zeros_like(degree)
    np.divide(1.0, np.sqrt(degree), out=scale, where=degree > 0)
    unit = sparse.csr_array(interactions.multiply(scale[None, :]))  # columns of length one
    by_item = sparse.csr_array(unit.T)
    parts = []
    for start in range(0, by_item.shape[0], _ROWS):
        block = sparse.coo_array(by_item[start : start + _ROWS] @ unit)
        other = block.row + start != block.col
        rows, columns, values = block.row[other], block.col[other], block.data[other]
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        counts = np.bincount(rows, minlength=block.shape[0])
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        best = place < k
        parts.append(sparse.csr_array((values[best], (rows[best], columns[best])), shape=block.shape))
    return sparse.csr_array(sparse.vstack(parts))


def item_knn_scorer(dataset: Dataset, k: int) -> Scorer:
    """Score all items by their k nearest neighbours among a user's training items.

    Args:
        dataset: Its training interactions are used, and nothing else.
        k: Neighbours of an item.

    Returns:
        User rows int64 [b] → float32 [b, I].
    """
    interactions = interaction_matrix(dataset)
    weights = sparse.csr_array(neighbours(interactions, k).T).astype(np.float32)
    interactions = interactions.astype(np.float32)

    def score(users: Tensor) -> Tensor:
        return torch.from_numpy((interactions[users.numpy()] @ weights).toarray())

    return score


@dataclass(frozen=True)
class ChosenItemKnn:
    """The item-kNN whose number of neighbours is best on validation.

    Attributes:
        k: Its number of neighbours.
        valid: k → the validation metric it was chosen by.
        test: Metrics on the test split.
    """

    k: int
    valid: dict[int, float]
    test: dict[str, float]


def choose_item_knn(
    dataset: Dataset, ks: Sequence[int], monitor: str = "recall@20", candidates: Sequence[int] = NEIGHBOURS
) -> ChosenItemKnn:
    """Choose the number of neighbours on the validation split and evaluate that one on the test split.

    Args:
        dataset: The data.
        ks: Cut-offs of the metrics.
        monitor: The metric that decides; the smaller k wins a tie.
        candidates: The k to try.
    """
    valid = EvaluationSet.of(dataset, "valid")
    cutoff = (int(monitor.split("@")[1]),)
    found = {k: evaluate(item_knn_scorer(dataset, k), valid, dataset.n_items, cutoff)[monitor] for k in candidates}
    best = max(found, key=lambda k: (found[k], -k))
    test = evaluate(item_knn_scorer(dataset, best), EvaluationSet.of(dataset, "test"), dataset.n_items, ks)
    return ChosenItemKnn(best, found, test)
