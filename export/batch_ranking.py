"""The best items of many users at once: float32 products propose, exact float64 scores decide. Needs no torch.

A request searches for one user; here all users are ranked. Blocks of them are multiplied with tiles of items, so that
the scores of a tile stay in the processor's caches until they are forgotten: what is kept are the few that could belong
to a list, and these are scored once more, as the service scores them. So a list and its scores are the service's to the
last bit, whatever ONNX Runtime's order of summation is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.index_layout import largest_norm
from export.index_search import check_products
from export.parity import session
from export.runtime import onnxruntime
from export.scores import inner_products

_USERS = 256
_TILE = 4096
_GROUP = 16
_GROUPS_PER_WANTED = 8
_MOST_CANDIDATES = 2**20
_CANDIDATES_PER_WANTED = 4
_PRODUCTS_AT_ONCE = 2**16
_OPSET, _IR_VERSION = 18, 10


class Lists(NamedTuple):
    """The lists of some users, one after another.

    Attributes:
        counts: int64 [n], the length of each.
        rows: int64 [sum of counts], item rows, in each list by (score descending, row ascending).
        scores: float64 [sum of counts].
    """

    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


class _Candidates(NamedTuple):
    """Pairs of a user and an item that could belong to the user's list.

    Attributes:
        owners: int64 [p], users, counted from the block's first.
        rows: int64 [p], item rows.
        estimates: float32 [p], scores as far as they are known.
    """

    owners: NDArray[np.int64]
    rows: NDArray[np.int64]
    estimates: NDArray[np.float32]


def pair_scores(
    vectors: NDArray[np.float32], owners: NDArray[np.int64], items: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the `inner_products` of pairs of a user and an item, some at a time.

    Args:
        vectors: float32 [n, D].
        owners: int64 [p], rows of ``vectors``.
        items: float32 [I, D].
        rows: int64 [p], rows of ``items``.

    Returns:
        float64 [p].
    """
    scores = np.empty(len(rows), dtype=np.float64)
    wide = vectors.astype(np.float64)
    size = max(1, _PRODUCTS_AT_ONCE // vectors.shape[1])
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        scores[part] = inner_products(items, rows[part], wide[owners[part]])
    return scores


class BatchRanker:
    """Exact top-k for blocks of users. Several threads may ask at once; each call computes in its own.

    Args:
        items: float32 [I, D], finite.
        k: Items wanted, at least 1.

    Attributes:
        users_at_once: Users of a good block: fewer where lists are long, so that their candidates have room.
    """

    def __init__(self, items: NDArray[np.float32], k: int) -> None:
        n_items, dimension = items.shape
        self._items = items
        self._k = min(k, n_items)
        self.users_at_once = max(1, min(_USERS, _MOST_CANDIDATES // (_CANDIDATES_PER_WANTED * self._k)))
        self._width = max(1, min(_GROUP, n_items // (_GROUPS_PER_WANTED * self._k)))
        self._tile = _TILE // self._width * self._width
        self._largest = largest_norm(items)
        # |float32 inner product - exact| <= gamma_D |u| |v| for every order of summation (Higham, Accuracy and
        # Stability of Numerical Algorithms, eq. 3.5), where gamma_D is about D eps / 2: the other half is for the
        # smaller errors of the exact side. What underflows is less than the smallest normal number.
        numbers = np.finfo(np.float32)
        self._error_per_norm = dimension * float(numbers.eps) * self._largest
        self._underflow = dimension * float(numbers.tiny)
        self._product = _product(dimension)

    def top(self, vectors: NDArray[np.float32], seen: Sequence[NDArray[np.int32]]) -> Lists:
        """Rank all items for some users.

        Args:
            vectors: float32 [n, D], finite.
            seen: Per user the item rows never to return, strictly ascending.

        Returns:
            Per user ``min(k, items not seen)`` items.

        Raises:
            BundleError: Scores would overflow float32.
        """
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        check_products(self._largest, float(norms.max()))
        # k items have exact scores of at least the k-th largest float32 score less one error. What belongs before them
        # has a float32 score of at most one error less than that.
        slack = 2 * (self._error_per_norm * norms + self._underflow)
        seen_owners = np.repeat(np.arange(len(seen)), [len(rows) for rows in seen])
        seen_rows = np.concatenate(seen)
        largest = np.full((len(vectors), self._k), -np.inf, dtype=np.float32)
        bounds = largest[:, 0]
        found: list[_Candidates] = []
        for start in range(0, len(self._items), self._tile):
            tile = self._items[start : start + self._tile]
            scores: NDArray[np.float32] = self._product.run(None, {"users": vectors, "items": tile})[0]
            inside = (seen_rows >= start) & (seen_rows < start + len(tile))
            scores[seen_owners[inside], seen_rows[inside] - start] = -np.inf
            largest = self._with_maxima(largest, scores)
            bounds = _bounds(largest, slack)
            found.append(_above(scores, bounds, start))
            if sum(len(part.rows) for part in found) > _MOST_CANDIDATES:
                # Very many equal scores. The best so far stay in the race, whatever the bounds become.
                owners, rows, _ = self._best(vectors, found, bounds)
                found = [_Candidates(owners, rows, np.full(len(rows), np.inf, dtype=np.float32))]
        owners, rows, exact = self._best(vectors, found, bounds)
        return Lists(np.bincount(owners, minlength=len(vectors)), rows, exact)

    def _with_maxima(self, largest: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return k scores of different items of each user, [n, k], the first of which is the smallest.

        The k largest would take a partition of all scores. The largest of each few items will do: two of the k best
        are seldom among the same few, and a bound that is a little too low costs a few more candidates.
        """
        whole = scores.shape[1] // self._width * self._width
        maxima = scores[:, :whole].reshape(len(scores), self._width, -1).max(axis=1)
        known = np.concatenate([largest, maxima, scores[:, whole:]], axis=1)
        first = known.shape[1] - self._k
        known.partition(first, axis=1)
        return known[:, first:]

    def _best(
        self, vectors: NDArray[np.float32], found: Sequence[_Candidates], bounds: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return the k best candidates of each user: users in order, item rows and exact scores, each [p]."""
        owners, rows, estimates = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = estimates >= bounds[owners]
        owners, rows = owners[kept], rows[kept]
        scores = pair_scores(vectors, owners, self._items, rows)
        order = np.lexsort((rows, -scores, owners))
        counts = np.bincount(owners, minlength=len(vectors))
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        best = order[places < self._k]
        return owners[best], rows[best], scores[best]


def _above(scores: NDArray[np.float32], bounds: NDArray[np.float32], start: int) -> _Candidates:
    """Return the pairs whose scores, [n, w] of the items from row ``start`` on, reach the users' bounds, [n]."""
    flat = np.flatnonzero(scores >= bounds[:, None])
    owners = flat // scores.shape[1]
    return _Candidates(owners, flat - owners * scores.shape[1] + start, scores.reshape(-1)[flat])


def _bounds(largest: NDArray[np.float32], slack: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return what a float32 score must reach, [n]: never so little that a seen item reaches it."""
    lowest = (largest[:, 0] - slack).astype(np.float32)
    return np.maximum(np.nextafter(lowest, np.float32(-np.inf)), np.finfo(np.float32).min)


def _product(dimension: int) -> onnxruntime.InferenceSession:
    """Return a graph ``users`` [n, D], ``items`` [w, D] → ``scores`` [n, w], all float32.

    ONNX Runtime's product is about twice as fast as NumPy's, and the number of threads is the caller's choice.
    """
    users = helper.make_tensor_value_info("users", TensorProto.FLOAT, ["n", dimension])
    items = helper.make_tensor_value_info("items", TensorProto.FLOAT, ["w", dimension])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "w"])
    node = helper.make_node("Gemm", ["users", "items"], ["scores"], transB=1)
    graph = helper.make_graph([node], "product", [users, items], [scores])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return session(model.SerializeToString(), threads=1)
