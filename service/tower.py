"""The user tower: user rows to user vectors, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from export.onnx_safety import USERS, VECTORS
from export.runtime import GRAPH_ERRORS
from training.common.errors import BundleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHECK_ROWS = 1024


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

    Raises:
        BundleError: The graph does not load, or gives NaN, infinite or misshapen vectors.
    """

    def __init__(self, graph: bytes, n_users: int, dimension: int) -> None:
        self._dimension = dimension
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # The arena would keep the largest batch's buffers for good; a tower's outputs are small.
        options.enable_cpu_mem_arena = False
        with _as_bundle_error("load"):
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.largest_norm = 0.0
        for start in range(0, n_users, _CHECK_ROWS):
            rows = np.arange(start, min(start + _CHECK_ROWS, n_users), dtype=np.int64)
            with _as_bundle_error("run"):
                norms = np.linalg.norm(self(rows).astype(np.float64), axis=1)
            self.largest_norm = max(self.largest_norm, float(norms.max()))

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some users.

        Args:
            rows: int64 [B], user rows.

        Returns:
            float32 [B, D].

        Raises:
            BundleError: The graph gave something else, or NaN or infinite values.
        """
        vectors: NDArray[np.float32] = self._session.run([VECTORS], {USERS: rows})[0]
        if vectors.shape != (len(rows), self._dimension):
            raise BundleError(
                f"the user tower gives {vectors.shape}, wanted {(len(rows), self._dimension)}; export the bundle again"
            )
        if not np.isfinite(vectors).all():
            raise BundleError("the user tower gives NaN or infinite vectors; train and export the model again")
        return vectors
