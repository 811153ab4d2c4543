from __future__ import annotations

from itertools import combinations
from typing import get_args

import torch
from torch import Tensor

from training.randomness import Purpose, stream

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def draw(seed: int, purpose: Purpose, epoch: int = 0) -> Tensor:
    return torch.randn(4_000, generator=stream(seed, purpose, epoch))


def test_a_stream_is_a_function_of_seed_purpose_and_epoch() -> None:
    torch.manual_seed(0)
    first = draw(999, "noise", 3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(draw(999, "noise", 3), first)
    assert torch.equal(torch.get_rng_state(), before)  # and the global generator is left alone


def test_streams_differ_by_purpose_epoch_and_seed_and_are_uncorrelated() -> None:
    streams = [draw(999, purpose, epoch) for purpose in PURPOSES for epoch in (0, 1, 2)]
    streams += [draw(seed, "batches", 1) for seed in (0, 1, 9991)]
    for left, right in combinations(streams, 2):
        correlation = (left * right).mean().item()
        assert abs(correlation) < 6 / 4_000**0.5  # six standard deviations of independent streams


def test_neighbouring_keys_do_not_collide() -> None:
    # "1/x/12" and "11/x/2" and the like are different keys.
    seeds = {
        stream(seed, purpose, epoch).initial_seed() for purpose in PURPOSES for seed in range(25) for epoch in range(25)
    }
    assert len(seeds) == len(PURPOSES) * 25 * 25


def test_large_seeds_are_fine() -> None:
    assert not torch.equal(draw(2**63, "initial"), draw(2**64 + 1, "initial"))
