"""The user tower: user rows to user vectors, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from export.onnx_safety import USERS, VECTORS
from export.runtime import GRAPH_ERRORS
from service.retrieval.session import Buffers, open_session
from training.common.errors import BundleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ROWS = 1024
_MOST_ROWS = 64
"""Rows that a request, or the requests of one call, ask for."""


@contextmanager
def _as_bundle_error(what: str) -> Iterator[None]:
    try:
        yield
    except GRAPH_ERRORS as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"ONNX Runtime cannot {what} the user tower: {reason}; export the bundle again") from error


class UserTower:
    """A loaded tower, proven at construction to give a finite vector for every user.

    Args:
        graph: Serialised ONNX graph, ``users`` int64 [B] → ``vectors`` float32 [B, D], as
            `export.onnx_safety.check_user_tower` has passed it.
        n_users: Number of user rows.
        dimension: D.

    Attributes:
        largest_norm: Euclidean norm of the longest user vector.
        providers: ONNX Runtime's execution providers of the session.

    Raises:
        BundleError: The graph does not load, or gives NaN, infinite or misshapen vectors.
    """

    def __init__(self, graph: bytes, n_users: int, dimension: int) -> None:
        self._dimension = dimension
        with _as_bundle_error("load"):
            self._session = open_session(graph, threads=1)
        self._rows = np.empty(_MOST_ROWS, dtype=np.int64)
        self._vectors = np.empty((_MOST_ROWS, dimension), dtype=np.float32)
        self._buffers = Buffers(self._session, self._rows, self._vectors)
        self.providers = self._buffers.providers
        self._n_users = n_users
        self.largest_norm = 0.0
        with _as_bundle_error("run"):
            for vectors in self.blocks():
                if not np.isfinite(vectors).all():
                    raise BundleError("the user tower gives NaN or infinite vectors; train and export the model again")
                norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
                self.largest_norm = max(self.largest_norm, float(norms.max()))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of all users in order, float32 [n, D], some at a time."""
        for start in range(0, self._n_users, _BLOCK_ROWS):
            yield self(np.arange(start, min(start + _BLOCK_ROWS, self._n_users), dtype=np.int64))

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some users.

        Args:
            rows: int64 [B], user rows.

        Returns:
            float32 [B, D].

        Raises:
            BundleError: The graph gave something else.
        """
        count = len(rows)
        if 0 < count <= _MOST_ROWS:
            self._rows[:count] = rows
            self._buffers.run(count)
            return self._vectors[:count].copy()
        vectors: NDArray[np.float32] = self._session.run([VECTORS], {USERS: rows})[0]
        if vectors.shape != (len(rows), self._dimension):
            raise BundleError(
                f"the user tower gives {vectors.shape}, wanted {(len(rows), self._dimension)}; export the bundle again"
            )
        return vectors
