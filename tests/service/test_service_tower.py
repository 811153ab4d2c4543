"""Vectors of few users come through buffers of their own, those of many do not; all are rows of the table."""

from __future__ import annotations

import numpy as np

from service.retrieval.tower import UserTower
from tests.helpers_bundle import gather_tower


def test_vectors_are_the_tables_rows_and_stay_as_they_are() -> None:
    table = np.random.default_rng(0).standard_normal((2500, 9)).astype(np.float32)
    tower = UserTower(gather_tower(table), *table.shape)
    alone = [tower(np.array([row])) for row in range(5)]
    np.testing.assert_array_equal(np.concatenate(alone), table[:5])
    rows = np.array([3, 3, 2499, 0])
    np.testing.assert_array_equal(tower(rows), table[rows])
    np.testing.assert_array_equal(np.concatenate(list(tower.blocks())), table)
    assert tower.largest_norm == np.linalg.norm(table.astype(np.float64), axis=1).max()


def test_any_number_of_users_is_looked_up_in_any_order_of_numbers() -> None:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((300, 5)).astype(np.float32)
    tower = UserTower(gather_tower(table), *table.shape)
    kept = []
    for count in [*range(1, 70), 3, 64, 1, 65, 2, 1, 2, 0, 200]:
        rows = draw.integers(len(table), size=count)
        kept.append((tower(rows), rows))
    for vectors, rows in kept:
        np.testing.assert_array_equal(vectors, table[rows])
