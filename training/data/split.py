"""Which interactions stay, and which of them are for training, validation and test. Pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.data.options import DataOptions

TRAIN, VALID, TEST = 0, 1, 2


def first_occurrences(users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the first interaction of each (user, item) pair in file order.

    Args:
        users: int64 [n], from 0.
        items: int64 [n], from 0.

    Returns:
        bool [n].
    """
    pairs = users * (items.max(initial=0) + 1) + items
    keep = np.zeros(len(pairs), dtype=np.bool_)
    keep[np.unique(pairs, return_index=True)[1]] = True
    return keep


def k_core(users: NDArray[np.int64], items: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Mark the interactions of the k-core: the largest set in which every user and every item occurs k times or more.

    Args:
        users: int64 [n], from 0.
        items: int64 [n], from 0.
        k: The least number of interactions; 0 and 1 keep everything.

    Returns:
        bool [n].
    """
    keep = np.ones(len(users), dtype=np.bool_)
    while True:
        enough_users = np.bincount(users[keep], minlength=users.max(initial=0) + 1) >= k
        enough_items = np.bincount(items[keep], minlength=items.max(initial=0) + 1) >= k
        remaining = keep & enough_users[users] & enough_items[items]
        if np.array_equal(remaining, keep):
            return keep
        keep = remaining


def by_first_appearance(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct values of a column in the order in which they first appear.

    Args:
        codes: int64 [n].

    Returns:
        Rows int64 [n] from 0 without gaps, and the value that each row stands for, int64 [rows].
    """
    values, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return rank[inverse], values[order]


def split_labels(
    users: NDArray[np.int64], times: NDArray[np.int64] | NDArray[np.float64] | None, options: DataOptions
) -> NDArray[np.int8]:
    """Divide each user's interactions 8:1:1, at random or by time.

    A user with n ≥ 3 interactions gives max(1, round(0.1 n)) to validation and as many to test, the rest to training;
    a user with fewer gives all to training. By time, the last ones are for test and those before them for validation,
    equal times in file order. At random, the same rule runs over a seeded permutation.

    Args:
        users: int64 [n], from 0, in file order.
        times: [n], needed by the chronological split only.
        options: The rule and its seed.

    Returns:
        int8 [n] of TRAIN, VALID and TEST.

    Raises:
        ValueError: A chronological split without times.
    """
    keys: NDArray[np.int64] | NDArray[np.float64]
    if options.split == "chronological":
        if times is None:
            raise ValueError("a chronological split needs times")
        keys = times
    else:
        keys = np.random.Generator(np.random.PCG64(options.split_seed)).random(len(users))
    order = np.lexsort((keys, users))  # stable: equal keys keep the file's order
    counts = np.bincount(users)
    ends = np.cumsum(counts)
    owner = users[order]
    after = ends[owner] - 1 - np.arange(len(users))  # how many of the same user's interactions follow
    held_out = np.where(counts >= 3, np.maximum(1, np.rint(0.1 * counts).astype(np.int64)), 0)[owner]
    labels = np.full(len(users), TRAIN, dtype=np.int8)
    labels[order[after < 2 * held_out]] = VALID
    labels[order[after < held_out]] = TEST
    return labels
