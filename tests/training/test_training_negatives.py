from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from training.data import negatives as module
from training.data.negatives import NegativeSampler

Pair = tuple[int, int]


def sampler(pairs: list[Pair], n_items: int) -> NegativeSampler:
    users, items = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return NegativeSampler(users, items, n_items)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=2, max_size=60), st.integers(0, 2**31))
def test_never_a_training_positive_and_only_training_items(pairs: list[Pair], seed: int) -> None:
    owned = {user: {item for other, item in pairs if other == user} for user, _ in pairs}
    catalogue = {item for _, item in pairs}
    subject = sampler(pairs, n_items=12)
    # Exactly the users who own every training item have no negative, and `usable` says so.
    assert subject.usable.tolist() == [owned[user] != catalogue for user, _ in pairs]
    users = [user for user in owned if owned[user] != catalogue] * 20
    if users:
        drawn = subject.draw(torch.tensor(users), generator(seed)).tolist()
        for user, item in zip(users, drawn, strict=True):
            assert item in catalogue
            assert item not in owned[user]


def test_repeated_interactions_do_not_saturate_a_user() -> None:
    subject = sampler([(0, 1), (0, 1), (0, 1), (1, 2), (1, 3)], n_items=4)
    assert bool(subject.usable.all())
    assert set(subject.draw(torch.zeros(50, dtype=torch.int64), generator()).tolist()) == {2, 3}


def test_uniform_over_the_items_a_user_does_not_own() -> None:
    # 30 training items out of a catalogue of 40, spread unevenly over users: popularity must not matter.
    draw = np.random.default_rng(0)
    items = draw.permutation(40)[:30]
    pairs = [(user, int(item)) for user in range(1, 9) for item in items[: 4 * user - 2]]
    pairs += [(0, int(item)) for item in items[:6]]
    drawn = sampler(pairs, 40).draw(torch.zeros(48_000, dtype=torch.int64), generator())
    counts = np.bincount(drawn.numpy(), minlength=40)
    allowed = items[6:]
    assert counts.sum() == counts[allowed].sum()
    assert chisquare(counts[allowed]).pvalue > 1e-3


def test_uniform_also_when_rejection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 0)
    pairs = [(0, item) for item in range(40)] + [(1, item) for item in range(50)]
    drawn = sampler(pairs, 50).draw(torch.zeros(3_000, dtype=torch.int64), generator())
    counts = np.bincount(drawn.numpy(), minlength=50)
    assert counts[:40].sum() == 0
    assert chisquare(counts[40:]).pvalue > 1e-3


def test_a_user_who_lacks_one_item_gets_exactly_that() -> None:
    # 2,000 candidates: 32 rounds of rejection will not find it, so the complement is written out.
    pairs = [(0, item) for item in range(2_000) if item != 1_234] + [(1, 1_234)]
    drawn = sampler(pairs, 2_000).draw(torch.zeros(20, dtype=torch.int64), generator())
    assert drawn.tolist() == [1_234] * 20


def test_a_saturated_user_is_reported() -> None:
    pairs = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 0)]
    assert sampler(pairs, 5).usable.tolist() == [False, False, False, True, True]


def test_negatives_are_drawn_anew_but_reproducibly() -> None:
    pairs = [(0, 0)] + [(1, item) for item in range(1, 200)]
    subject, users = sampler(pairs, 200), torch.zeros(50, dtype=torch.int64)
    first = subject.draw(users, generator(5))
    assert torch.equal(subject.draw(users, generator(5)), first)
    assert not torch.equal(subject.draw(users, generator(6)), first)


def test_the_global_generator_plays_no_part() -> None:
    subject, users = sampler([(0, 0), (1, 1), (1, 2)], 3), torch.zeros(9, dtype=torch.int64)
    before = torch.get_rng_state()
    subject.draw(users, generator())
    assert torch.equal(torch.get_rng_state(), before)
