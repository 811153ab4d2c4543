"""One user's vector comes through buffers of its own, several users' do not; both are rows of the table."""

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
