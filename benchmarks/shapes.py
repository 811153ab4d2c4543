"""Synthetic data of a known catalogue's shape: speed depends on counts and widths, not on what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from training.common.errors import ConfigError, nearest
from training.common.strings import StringTable
from training.data.dataset import Dataset, Interactions


@dataclass(frozen=True)
class Shape:
    """Counts and feature widths of a data set.

    Attributes:
        n_users: U.
        n_items: I.
        n_train: Training interactions, as in the paper's Table 8 and the data set's random split.
        n_held_out: Interactions of the validation split and of the test split, each.
        features: Modality name → width.
    """

    n_users: int
    n_items: int
    n_train: int
    n_held_out: int
    features: dict[str, int]


SHAPES = {
    "baby": Shape(19_445, 7_050, 118_551, 20_559, {"text": 384, "image": 4096}),
    "sports": Shape(35_598, 18_357, 218_409, 37_899, {"text": 384, "image": 4096}),
    "clothing": Shape(39_387, 23_033, 197_338, 40_150, {"text": 384, "image": 4096}),
    "small": Shape(600, 400, 6_000, 800, {"text": 24, "image": 40}),
}


def shape_of(name: str) -> Shape:
    """Return the shape of a name.

    Raises:
        ConfigError: There is no shape of that name.
    """
    if name not in SHAPES:
        raise ConfigError(f"no shape '{name}'{nearest(name, SHAPES)}")
    return SHAPES[name]


def synthetic_dataset(name: str, seed: int = 0) -> Dataset:
    """Return a data set of a named shape: Zipf-like item popularity, distinct pairs, Gaussian features.

    Args:
        name: A key of ``SHAPES``.
        seed: Seed of everything drawn.

    Raises:
        ConfigError: There is no shape of that name.
    """
    shape = shape_of(name)
    generator = np.random.Generator(np.random.PCG64(seed))
    wanted = shape.n_train + 2 * shape.n_held_out
    weights = 1.0 / np.arange(1, shape.n_items + 1) ** 0.6
    cumulative = np.cumsum(weights / weights.sum())
    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < wanted:
        users = generator.integers(shape.n_users, size=wanted)
        items = np.searchsorted(cumulative, generator.random(wanted)).clip(max=shape.n_items - 1)
        pairs = np.unique(np.concatenate([pairs, users * shape.n_items + items]))
    pairs = generator.permutation(pairs)[:wanted]
    users, items = np.divmod(pairs, shape.n_items)
    bounds = np.cumsum([0, shape.n_train, shape.n_held_out, shape.n_held_out])
    parts = [Interactions(users[a:b].copy(), items[a:b].copy()) for a, b in pairwise(bounds)]
    return Dataset(
        name=f"{name}-shaped",
        user_ids=StringTable.of(str(row) for row in range(shape.n_users)),
        item_ids=StringTable.of(str(row) for row in range(shape.n_items)),
        titles=StringTable.of("" for _ in range(shape.n_items)),
        splits={"train": parts[0], "valid": parts[1], "test": parts[2]},
        features={
            modality: generator.standard_normal((shape.n_items, width), dtype=np.float32)
            for modality, width in shape.features.items()
        },
    )
