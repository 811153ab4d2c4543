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
    "low rank",
    "one-hot",
    "mixed scales",
    "zero users",
)


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
        case "repeated":
            items = items[draw.integers(0, max(1, n_items // 4), n_items)]
        case "huge":
            items, users = items * 1e17, users * 1e17
        case "tiny":
            items, users = items * 1e-30, users * 1e-8
        case "denormal":
            items, users = items * 1e-43, users * 1e-43
        case "constant":
            items = np.repeat(items[:1], n_items, axis=0)
        case "outlier":
            items[draw.integers(n_items)] *= 1e4
        case "common":
            items = items * 1e-3 + 1e3 * draw.standard_normal(dimension)
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
