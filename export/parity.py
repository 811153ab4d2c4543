"""Do two ways of computing the same scores agree, for every user? Needs neither torch nor training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from export.onnx_folding import is_worth_folding
from export.runtime import CPU, onnxruntime

TOLERANCE = 2e-6
"""Largest difference of a score, relative to the largest absolute score of the same user."""
TOP_K = 20
_BLOCK_SCORES = 4_000_000
_LARGE_BLOCK_SCORES = 32_000_000

Scores = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""User rows int64 [b] → scores float32 [b, I]."""


@dataclass
class Agreement:
    """How far one path is from the reference, over the users seen so far.

    Attributes:
        users: Users compared.
        max_absolute: Largest difference of any score.
        max_relative: The same, relative to that user's largest absolute score.
        sum_relative: Sum over the users of each one's largest relative difference.
        worst_user: Row of the user with the largest relative difference; None before any was seen.
        top_k_differing: Users whose top-k differs beyond ties, where scores within the tolerance count as tied.
    """

    users: int = 0
    max_absolute: float = 0.0
    max_relative: float = 0.0
    sum_relative: float = 0.0
    worst_user: int | None = None
    top_k_differing: int = 0

    @property
    def passed(self) -> bool:
        """Whether every user agrees."""
        return self.users > 0 and self.max_relative <= TOLERANCE and self.top_k_differing == 0

    @property
    def mean_relative(self) -> float:
        """Return the mean over the users of each one's largest relative difference."""
        return self.sum_relative / max(1, self.users)

    def add_scores(self, reference: NDArray[np.float32], other: NDArray[np.float32]) -> None:
        """Compare the scores of the next block of users, float32 [b, I] each."""
        largest = np.maximum(reference.max(axis=1), -reference.min(axis=1))
        with np.errstate(invalid="ignore"):
            # Exact where it matters: numbers within a factor of two have an exact difference.
            gap = np.subtract(reference, other)
        difference = np.maximum(gap.max(axis=1), -gap.min(axis=1)).astype(np.float64)
        # A score that is no number must fail, and comparisons with NaN would let it pass.
        finite = np.isfinite(largest) & np.isfinite(difference)
        difference[~finite] = np.inf
        # Where every score is zero, any difference at all is infinite relative to it.
        relative = np.where(difference > 0, np.inf, 0.0)
        np.divide(difference, largest, out=relative, where=finite & (largest > 0))
        worst = int(relative.argmax())
        if self.worst_user is None or relative[worst] > self.max_relative:
            self.worst_user, self.max_relative = self.users + worst, max(0.0, float(relative[worst]))
        self.users += len(reference)
        self.sum_relative += float(relative.sum())
        self.max_absolute = max(self.max_absolute, float(difference.max()))

    def add_lists(self, reference: NDArray[np.float32], items: NDArray[np.int64]) -> None:
        """Compare best-first lists of items, int64 [b, k], with the reference scores float32 [b, I].

        A list agrees if at every rank its item scores as much as the reference's item there, within the tolerance.
        """
        found = np.take_along_axis(reference, items, axis=1)
        worst = found.min(axis=1, keepdims=True)
        # No item left out is better than the list's last, and the list is in order: settled without sorting.
        complete = (reference > worst).sum(axis=1) == (found > worst).sum(axis=1)
        ordered = (np.diff(found, axis=1) <= 0).all(axis=1)
        repeated = (np.diff(np.sort(items, axis=1), axis=1) == 0).any(axis=1)
        agrees = complete & ordered & np.isfinite(worst[:, 0])
        doubtful = np.flatnonzero(~agrees)
        agrees[doubtful] = self._agree_within_ties(reference[doubtful], found[doubtful])
        self.top_k_differing += int((~agrees | repeated).sum())

    @staticmethod
    def _agree_within_ties(reference: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.bool_]:
        k = found.shape[1]
        best = -np.sort(-np.partition(reference, -k, axis=1)[:, -k:], axis=1)
        allowed = TOLERANCE * np.abs(reference).max(axis=1, keepdims=True)
        return np.asarray((np.abs(best.astype(np.float64) - found) <= allowed).all(axis=1))


def session(
    data: bytes, *, optimised: bool = True, folded: bool | None = None, threads: int = 0, provider: str = CPU
) -> onnxruntime.InferenceSession:
    """Open an ONNX graph: one of our own making, or one that `export.onnx_safety` has passed.

    Args:
        data: The serialised graph.
        optimised: Let ONNX Runtime optimise.
        folded: Let it fold what does not depend on an input, too; None for wherever that does not take too much memory.
        threads: Of one call; 0 for as many as there are cores.
        provider: What runs the graph; no other takes over where it is missing, as `opened.get_providers()` tells.
    """
    if folded is None:
        folded = optimised and is_worth_folding(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    if not folded:
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    return onnxruntime.InferenceSession(data, options, providers=[provider])


def onnx_scores(data: bytes, n_users: int, n_items: int, *, optimised: bool = True) -> Scores:
    """Return the scores of a full graph, run by ONNX Runtime.

    Args:
        data: A serialised graph.
        n_users: U.
        n_items: I.
        optimised: Let ONNX Runtime optimise. Where it does not fold what the user does not change, every call
            propagates anew, in one thread: its threads add up a node's messages in an order that changes from run to
            run.
    """
    folded = optimised and is_worth_folding(data)
    opened = session(data, optimised=optimised, folded=folded, threads=0 if folded else 1)

    def run(users: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = opened.run(["scores"], {"users": users})[0]
        return scores

    return run if folded else LargeBlocks(run, n_users, n_items)


class TowersAndIndex:
    """What a request runs: the user tower, then the FAISS index.

    Args:
        user_tower: Serialised ONNX graph.
        index: A FAISS index over the item vectors.
        n_items: How many of them to compare, from the first on: a model knows nothing of items added since. All, by
            default.
    """

    def __init__(self, user_tower: bytes, index: faiss.Index, n_items: int | None = None) -> None:
        self._tower = session(user_tower)
        self._items: NDArray[np.float32] = index.reconstruct_n(0, index.ntotal if n_items is None else n_items)
        if len(self._items) < index.ntotal:
            index = faiss.IndexFlatIP(index.d)
            index.add(self._items)
        self._index = index

    def vectors(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return user vectors float32 [b, D]."""
        vectors: NDArray[np.float32] = self._tower.run(["vectors"], {"users": users})[0]
        return vectors

    def scores(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return all scores, from the vectors that the index stores."""
        return self.vectors(users) @ self._items.T

    def search(self, users: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return the index's k best items for every user, int64 [b, k]."""
        found: NDArray[np.int64] = self._index.search(self.vectors(users), k)[1]
        return found


class LargeBlocks:
    """Scores of a path on which every call costs as much as the whole model: few calls, for more users than asked for.

    Args:
        scores: The path.
        n_users: U.
        n_items: I.
    """

    def __init__(self, scores: Scores, n_users: int, n_items: int) -> None:
        self._scores, self._n_users = scores, n_users
        self._size = max(1, _LARGE_BLOCK_SCORES // n_items)
        self._first = 0
        self._block = np.empty((0, n_items), dtype=np.float32)

    def __call__(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of consecutive users, float32 [b, I]; best asked for in order."""
        first, end = int(users[0]), int(users[-1]) + 1
        if first < self._first or end > self._first + len(self._block):
            self._first = first
            stop = min(max(end, first + self._size), self._n_users)
            self._block = np.empty((0, 0), dtype=np.float32)  # make room first
            self._block = self._scores(np.arange(first, stop, dtype=np.int64))
        found = self._block[first - self._first : end - self._first]
        if end == self._n_users:
            self._block = np.empty((0, 0), dtype=np.float32)
        return found


def user_blocks(n_users: int, n_items: int) -> Iterator[NDArray[np.int64]]:
    """Yield all user rows, in order, in blocks of bounded size."""
    size = max(1, _BLOCK_SCORES // n_items)
    for start in range(0, n_users, size):
        yield np.arange(start, min(start + size, n_users), dtype=np.int64)


def top_k_of(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the items of the k largest scores of every row, best first, ties by item row."""
    # At least k scores reach the k-th largest of the maxima of disjoint groups: few items are left to be sorted.
    maxima = scores
    while (half := maxima.shape[1] // 2) >= 4 * k:
        maxima = np.maximum(maxima[:, :half], maxima[:, half : 2 * half])
    cut = np.partition(maxima, -k, axis=1)[:, -k, None]
    rows, items = np.divmod(np.flatnonzero(scores >= cut), scores.shape[1])
    ranked = np.lexsort((items, -scores[rows, items], rows))
    first = np.searchsorted(rows, np.arange(len(scores)))
    return np.asarray(items[ranked][first[:, None] + np.arange(k)], dtype=np.int64)


def compare(
    reference: Scores, paths: dict[str, Scores], towers: TowersAndIndex, n_users: int, n_items: int
) -> dict[str, Agreement]:
    """Compare several ways to score with one reference, over every user.

    Args:
        reference: The trained model, or whatever stands for it.
        paths: Name → scores of another path.
        towers: The serving path; reported as ``towers_index``.
        n_users: U.
        n_items: I.

    Returns:
        Name → agreement.
    """
    k = min(TOP_K, n_items)

    def lists(scores: NDArray[np.float32], _: NDArray[np.int64]) -> NDArray[np.int64]:
        return top_k_of(scores, k)

    # One path after the other: each holds a model of its own, and some hold the scores of many users.
    result = {name: _agreement(reference, path, lists, n_users, n_items) for name, path in paths.items()}
    found = _agreement(reference, towers.scores, lambda _, users: towers.search(users, k), n_users, n_items)
    return {**result, "towers_index": found}


def _agreement(
    reference: Scores,
    path: Scores,
    lists: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.int64]],
    n_users: int,
    n_items: int,
) -> Agreement:
    agreement = Agreement()
    for users in user_blocks(n_users, n_items):
        expected, scores = reference(users), path(users)
        agreement.add_scores(expected, scores)
        agreement.add_lists(expected, lists(scores, users))
    return agreement
