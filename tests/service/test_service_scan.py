"""The integer scan: its error bound holds for any vectors, and a machine that multiplies wrongly is found out."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.retrieval import scan as module
from service.retrieval.scan import Scan, ScanError
from tests.service.vectors import KINDS, draw_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray


def codes_of(items: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and scale by their definition."""
    low, high = items.astype(np.float64).min(axis=0), items.astype(np.float64).max(axis=0)
    centre = (low + high) / 2
    return centre, np.maximum(high - centre, centre - low) / 127


def check_bound(items: NDArray[np.float32], users: NDArray[np.float32]) -> float:
    """Compare all sums with exact fractions; return the largest share of the error that was used."""
    scan = Scan(items, threads=1)
    centre, scale = codes_of(items)
    used = 0.0
    for user in users:
        code = scan.encode(user[None]).of(0)
        sums = scan([code.levels])[0]
        reach = np.abs(user.astype(np.float64) * scale).max()
        factor = Fraction(float(scan._levels / reach)) if reach else Fraction(1)
        u = [Fraction(float(value)) for value in user]
        base = sum(a * Fraction(float(c)) for a, c in zip(u, centre, strict=True))
        for total, item in zip(sums.tolist(), items, strict=True):
            score = sum(a * Fraction(float(v)) for a, v in zip(u, item, strict=True))
            used = max(used, float(abs(factor * (score - base) - total) / Fraction(code.error)))
    assert used <= 1
    return used


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), dimension=st.sampled_from([1, 2, 5, 24]), seed=st.integers(0, 2**32 - 1))
def test_no_sum_is_further_off_than_its_error(kind: str, dimension: int, seed: int) -> None:
    check_bound(*draw_vectors(kind, 25, 3, dimension, seed))


def test_the_error_can_come_close_to_its_bound() -> None:
    """Half a step is rounded off everywhere, in the same direction: a bound of half the size would not hold."""
    items = np.full((3, 16), 127, dtype=np.float32)
    items[1] = -127
    items[2] = 10.499
    assert check_bound(items, np.ones((1, 16), dtype=np.float32)) > 0.99
    # One level of the user's is at its limit, the others lie half a step beside theirs.
    user = np.full((1, 64), 10.5 / 127, dtype=np.float32)
    user[0, 0] = 1
    whole = np.full((2, 64), 127, dtype=np.float32)
    whole[1] = -127
    assert check_bound(whole, user) > 0.95


@pytest.mark.parametrize("n_items", [1, 3, 4097])
@pytest.mark.parametrize("dimension", [1, 128, 2000])
def test_sums_are_those_of_whole_numbers(n_items: int, dimension: int) -> None:
    items, users = draw_vectors("normal", n_items, 4, dimension, 7)
    scan = Scan(items, threads=1)
    centre, scale = codes_of(items)
    codes = np.rint((items - centre) / np.where(scale > 0, scale, 1)).astype(np.int64)
    coded = scan.encode(users)
    wanted = (coded.levels.astype(np.int64) - (scan._levels + 1)) @ codes.T
    np.testing.assert_array_equal(scan(list(coded.levels)), wanted)
    for levels, row in zip(coded.levels, wanted, strict=True):
        np.testing.assert_array_equal(scan([levels]), row[None])


class Kernel:
    """A session whose results go through a fault."""

    def __init__(self, session: Any, fault: Any) -> None:
        self._session, self._fault = session, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: list[str], feeds: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.int32]]:
        return [self._fault(self._session.run(outputs, feeds)[0], feeds["users"])]


def plant(monkeypatch: pytest.MonkeyPatch, make_fault: Any) -> None:
    opened = module._open
    monkeypatch.setattr(module, "_open", lambda codes, *rest: Kernel(opened(codes, *rest), make_fault(codes, rest[0])))


def saturating(codes: NDArray[np.int8], zero: int) -> Any:
    """Two products are added in 16 bits, as on processors without 8-bit dot products."""

    def fault(_: NDArray[np.int32], users: NDArray[np.uint8]) -> NDArray[np.int32]:
        products = users.astype(np.int64)[:, :, None] * codes.astype(np.int64)[None]
        pairs = np.clip(products[:, ::2] + products[:, 1::2], -(2**15), 2**15 - 1)
        wrong: NDArray[np.int64] = pairs.sum(axis=1) - zero * codes.astype(np.int64).sum(axis=0)
        return wrong.astype(np.int32)

    return fault


@pytest.mark.parametrize("signs", [1, -1])
def test_a_kernel_that_saturates_gets_seven_bits(signs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    users = draw_vectors("normal", 1, 2, 16, 0)[1]
    items = np.concatenate([127 * np.eye(16), -127 * np.eye(16), np.zeros((1, 16))]).astype(np.float32)
    items[-1, 4:6] = 127 * signs, 2 * signs  # one pair of one item, and only with the largest codes
    assert Scan(items, threads=1)._levels == 127
    plant(monkeypatch, saturating)
    assert Scan(items, threads=1)._levels == 63
    check_bound(items, users)


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_one_wrong_sum_for_one_number_of_users_is_found(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(_codes: object, _zero: object) -> Any:
        def fault(sums: NDArray[np.int32], users: NDArray[np.uint8]) -> NDArray[np.int32]:
            sums[-1, -1] += len(users) == batch
            return sums

        return fault

    items, _ = draw_vectors("normal", 60, 2, 16, 0)
    plant(monkeypatch, off_by_one)
    with pytest.raises(ScanError, match="wrongly"):
        Scan(items, threads=1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ScanError, match="too many"):
        Scan(np.ones((1, 70_000), dtype=np.float32), threads=1)
    many = np.lib.stride_tricks.as_strided(np.ones(1, dtype=np.float32), shape=(2**30, 2), strides=(0, 0))
    with pytest.raises(ScanError, match="too many"):
        Scan(many, threads=1)
