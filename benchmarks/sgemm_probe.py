"""One process that multiplies users with items and does nothing else; see ``benchmarks.all_users``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.probe import answer

_USERS_AT_ONCE = 512


def probe(users: int, items: int, dimension: int, threads: int, calls: int) -> dict[str, Any]:
    """Time the product of all users with all items, float32, in blocks of users and by NumPy's BLAS.

    Args:
        users: U.
        items: I.
        dimension: D.
        threads: Of the BLAS.
        calls: How often all users are multiplied.

    Returns:
        ``seconds`` of each call.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = str(threads)  # read once, when NumPy is imported
    import numpy as np

    generator = np.random.default_rng(0)
    left = generator.standard_normal((users, dimension), dtype=np.float32)
    right = generator.standard_normal((items, dimension), dtype=np.float32)
    scores = np.empty((min(_USERS_AT_ONCE, users), items), dtype=np.float32)
    np.matmul(left[: len(scores)], right.T, out=scores)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        for start in range(0, users, _USERS_AT_ONCE):
            block = left[start : start + _USERS_AT_ONCE]
            np.matmul(block, right.T, out=scores[: len(block)])
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def main() -> None:
    """Read the arguments of ``probe`` as JSON from the command line, and write its result, or what went wrong."""
    answer(probe, sys.argv[1])


if __name__ == "__main__":
    main()
