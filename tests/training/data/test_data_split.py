"""The split and the filters: hand-worked cases, and properties over random logs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.options import DataOptions
from training.data.split import TEST, TRAIN, VALID, by_first_appearance, first_occurrences, k_core, split_labels

owners = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(lambda rows: np.array(rows, dtype=np.int64))
rules = st.sampled_from(["random", "chronological"])


def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_repeated_pairs_keep_their_first_row() -> None:
    kept = first_occurrences(ints(0, 1, 0, 0, 1), ints(2, 2, 2, 1, 2))
    assert kept.tolist() == [True, True, False, True, False]


def test_pairs_that_share_a_product_are_not_repeated() -> None:
    assert first_occurrences(ints(0, 1, 2), ints(2, 1, 0)).all()


def test_k_core_removes_in_waves() -> None:
    # Item 2 occurs once, so it falls; that leaves user 2 with one interaction, so it falls; users 0 and 1 remain.
    users, items = ints(0, 0, 1, 1, 2, 2), ints(0, 1, 0, 1, 1, 2)
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False, False]
    assert not k_core(users, items, 3).any()
    assert k_core(users, items, 0).all()


def test_k_core_of_nothing() -> None:
    assert k_core(ints(), ints(), 5).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60, unique=True), st.integers(0, 4))
def test_k_core_is_the_largest_such_set(pairs: list[tuple[int, int]], k: int) -> None:
    users, items = ints(*(pair[0] for pair in pairs)), ints(*(pair[1] for pair in pairs))
    left = set(pairs)
    while True:  # one at a time, in plain Python
        weak = next(
            (p for p in sorted(left) if sum(q[0] == p[0] for q in left) < k or sum(q[1] == p[1] for q in left) < k),
            None,
        )
        if weak is None:
            break
        left.remove(weak)
    kept = k_core(users, items, k)
    assert {pair for pair, keep in zip(pairs, kept, strict=True) if keep} == left


def test_numbering_follows_first_appearance() -> None:
    rows, values = by_first_appearance(ints(7, 3, 7, 9, 3))
    assert rows.tolist() == [0, 1, 0, 2, 1]
    assert values.tolist() == [7, 3, 9]


def test_chronological_by_hand() -> None:
    # User 0 has five interactions: the latest (time 9) is for test, the one before (8) for validation.
    # User 1 has three with equal times: the file's order decides. User 2 has two: all for training.
    users = ints(0, 1, 0, 2, 0, 1, 0, 2, 0, 1)
    times = ints(9, 5, 1, 3, 8, 5, 2, 1, 4, 5)
    labels = split_labels(users, times, DataOptions(split="chronological"))
    expected = [TEST, TRAIN, TRAIN, TRAIN, VALID, VALID, TRAIN, TRAIN, TRAIN, TEST]
    assert labels.tolist() == expected


def test_chronological_holds_out_a_tenth_twice() -> None:
    labels = split_labels(np.zeros(20, dtype=np.int64), np.arange(20)[::-1].copy(), DataOptions(split="chronological"))
    assert labels.tolist() == [TEST] * 2 + [VALID] * 2 + [TRAIN] * 16


def test_chronological_needs_times() -> None:
    with pytest.raises(ValueError, match="needs times"):
        split_labels(ints(0, 0, 0), None, DataOptions(split="chronological"))


@given(owners, rules, st.integers(0, 3))
def test_every_user_gives_the_right_counts(
    users: np.ndarray[tuple[int], np.dtype[np.int64]], rule: str, seed: int
) -> None:
    options = DataOptions.model_validate({"split": rule, "split_seed": seed})
    labels = split_labels(users, np.arange(len(users)) % 7, options)
    assert labels.shape == users.shape  # one label each: the splits are disjoint and their union is everything
    for user in np.unique(users):
        n = int((users == user).sum())
        held_out = max(1, round(0.1 * n)) if n >= 3 else 0
        counts = np.bincount(labels[users == user], minlength=3).tolist()
        assert counts == [n - 2 * held_out, held_out, held_out]


@given(owners)
def test_by_time_nothing_in_training_is_later_than_what_is_held_out(
    users: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> None:
    times = (np.arange(len(users)) * 37) % 11
    labels = split_labels(users, times, DataOptions(split="chronological"))
    for user in np.unique(users):
        own = users == user
        for earlier, later in ((TRAIN, VALID), (VALID, TEST)):
            before, after = times[own & (labels == earlier)], times[own & (labels == later)]
            assert not len(after) or before.max() <= after.min()


@given(owners, st.integers(0, 2**32))
def test_same_seed_same_split(users: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int) -> None:
    options = DataOptions(split_seed=seed)
    assert np.array_equal(split_labels(users, None, options), split_labels(users.copy(), None, options))


def test_another_seed_another_split() -> None:
    users = np.repeat(np.arange(20), 10)
    splits = {split_labels(users, None, DataOptions(split_seed=seed)).tobytes() for seed in range(10)}
    assert len(splits) == 10


def test_the_random_split_is_spread_over_the_file() -> None:
    # Ten interactions each: were the draw not random, every user's held-out pair would stand at the same places.
    labels = split_labels(np.repeat(np.arange(500), 10), None, DataOptions()).reshape(500, 10)
    for held_out in (VALID, TEST):
        assert ((labels == held_out).mean(axis=0) > 0.04).all()
