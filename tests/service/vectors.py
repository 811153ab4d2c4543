"""Item and user vectors of many kinds, some made to trouble 8-bit integers and float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = (
    "normal",
    "tied",
    "repeated",
    "huge",
    "tiny",
    "denormal",
    "constant",
    "outlier",
    "common",
    "absorbed",
    "low rank",
    "one-hot",
    "mixed scales",
    "zero users",
)

_SIZES = {"huge": (1e17, 1e17), "tiny": (1e-30, 1e-8), "denormal": (1e-43, 1e-43)}


def draw_vectors(
    kind: str, n_items: int, n_users: int, dimension: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw vectors.

    Args:
        kind: One of `KINDS`.
        n_items: I.
        n_users: U.
        dimension: D.
        seed: Of the generator.

    Returns:
        Items float32 [I, D] and users float32 [U, D].
    """
    draw = np.random.default_rng(seed)
    items, users = draw.standard_normal((n_items, dimension)), draw.standard_normal((n_users, dimension))
    match kind:
        case "tied":
            items, users = np.rint(items), np.rint(users)
        case "repeated" | "constant":
            items = items[draw.integers(0, max(1, n_items // 4) if kind == "repeated" else 1, n_items)]
        case "huge" | "tiny" | "denormal":
            items, users = items * _SIZES[kind][0], users * _SIZES[kind][1]
        case "outlier":
            items[draw.integers(n_items)] *= 1e4
        case "common":
            items = items * 1e-3 + 1e3 * draw.standard_normal(dimension)
        case "absorbed":  # float64 rounds the rest off where it is added to the first before the last
            items = np.rint(items * 20)
            users[:] = 1
            if dimension > 2:
                items[:, 0], items[:, -1] = 2.0**60, -(2.0**60)
        case "low rank":
            rank = min(2, dimension)
            items = items[:, :rank] @ draw.standard_normal((rank, dimension))
        case "one-hot":
            items = np.eye(dimension)[draw.integers(0, dimension, n_items)]
        case "mixed scales":
            scales = 10.0 ** draw.integers(-12, 9, dimension)
            items, users = items * scales, users / np.roll(scales, 1)
        case "zero users":
            users[::2] = 0
    return items.astype(np.float32), users.astype(np.float32)
